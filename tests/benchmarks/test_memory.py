"""The memory benchmarks measure what they claim to, and few silos stay within the limits; growth is in tests/long."""

from __future__ import annotations

import pytest

from experiments.benchmarks.common import in_fresh_process
from experiments.benchmarks.memory import EXTRA_COPIES
from experiments.benchmarks.server_memory import server_peak
from experiments.benchmarks.soak import growth


def test_growth_is_the_slope_after_the_warm_up() -> None:
    messages = list(range(10, 401, 10))
    warm_up = [5000.0 if n <= 100 else 0.0 for n in messages]
    resident = [900.0 + 2.5 * n + extra for n, extra in zip(messages, warm_up, strict=True)]
    assert growth(messages, resident) == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["dfd, posterior weights", "dfd, energy weights and ULA", "fedavg"])
def test_server_holds_a_copy_a_silo_and_few_more(name: str) -> None:
    num_silos = 4
    peak = in_fresh_process(server_peak, name, 400, num_silos, return_freed=True)
    assert peak.copies > num_silos, "less than the answers themselves: the measurement is blind"
    assert peak.copies <= num_silos + EXTRA_COPIES
