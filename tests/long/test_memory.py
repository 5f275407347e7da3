"""Memory that would grow slowly, with every message or round."""

from __future__ import annotations

from experiments.benchmarks.common import in_fresh_process
from experiments.benchmarks.memory import GROWTH_LIMIT, ROUND_GROWTH_LIMIT
from experiments.benchmarks.soak import client_soak, server_soak


def test_client_does_not_keep_its_messages() -> None:
    soak = in_fresh_process(client_soak, 60, every=2)
    assert soak.counts[-1] == 60
    # A few pages more or less weigh 17 times as much as over 1,000 messages; a kept message adds 10 kB.
    assert soak.growth < 8 * GROWTH_LIMIT


def test_server_does_not_keep_its_rounds() -> None:
    soak = in_fresh_process(server_soak, 60, every=2)
    assert soak.counts[-1] == 60
    # A kept set adds 1,200 kB a round.
    assert soak.growth < 8 * ROUND_GROWTH_LIMIT
