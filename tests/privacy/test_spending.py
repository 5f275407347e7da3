"""What lines of a privacy account add up to, against dp-accounting itself."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from fedsynth.chain import START, chained
from fedsynth.privacy.accounting import Geometric, Mechanism
from fedsynth.privacy.spending import Spending, gaussian, geometric, read_account, spent_epsilon

DELTA = 1e-5


def spending(mechanism: Any, what: str = "training") -> Spending:
    return Spending(what, mechanism, "da7a", "17", "2026-01-01T00:00:00+00:00")


def account(*contents: dict[str, Any]) -> bytes:
    lines, last = [], START
    for content in contents:
        line, last = chained(content, last)
        lines.append(line)
    return b"".join(lines)


def test_everything_adds_up_as_dp_accounting_composes_it() -> None:
    steps = [Mechanism(5.0, 0.5, 20), Geometric(2.0), Mechanism(5.0, 0.5, 30), Mechanism(3.0), Geometric(2.0)]
    subsampled = pld.from_gaussian_mechanism(5.0, sampling_prob=0.5).self_compose(50)
    whole = subsampled.compose(pld.from_gaussian_mechanism(3.0))
    found = spent_epsilon(steps, DELTA)
    exact = pld.from_discrete_laplace_mechanism(0.5, 1).self_compose(2)
    assert found == pytest.approx(whole.compose(exact).get_epsilon_for_delta(DELTA), abs=2e-3)
    assert spent_epsilon(steps[::-1], DELTA) == found
    assert spent_epsilon([], DELTA) == 0


def test_a_release_of_the_analytic_gaussian_mechanism_costs_what_it_was_made_for() -> None:
    from clients.noisy_moments import SENSITIVITY, gaussian_scale

    one = gaussian(gaussian_scale(3.0, DELTA, SENSITIVITY) / SENSITIVITY)
    assert spent_epsilon([one], DELTA) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize(
    "mechanisms",
    [
        [None],
        [Geometric(1.0), None],
        [Mechanism(0.05, 0.5, 200)],
        [Mechanism(1.0, 1.0, 10_000)],
        [Mechanism(0.5, 0.5, 100_000)],
        [Geometric(0.05)] * 4,
    ],
)
def test_what_cannot_be_private_is_not_computed(mechanisms: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsynth.privacy.spending.epsilon", lambda *_: pytest.fail("minutes of work"))
    assert spent_epsilon(mechanisms, DELTA) == math.inf


def test_too_little_noise_is_none() -> None:
    assert (geometric(0.0), geometric(0.049), geometric(0.09, 2), geometric(math.inf)) == (None, None, None, None)
    assert (gaussian(0.0), gaussian(0.049)) == (None, None)
    assert gaussian(1e9) == Mechanism(1e6), "less noise than there is: ε is no smaller than it is"


@pytest.mark.parametrize("mechanism", [None, Geometric(0.1, 2), Mechanism(5.71, 32 / 300, 10_000)])
def test_a_line_says_all_of_a_mechanism(mechanism: Any) -> None:
    said = spending(mechanism)
    report = read_account(io.BytesIO(account(said.content())))
    assert (report.spendings, report.problems) == ([said], [])


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "laplace"},
        {"noise-multiplier": 0.0},
        {"noise-multiplier": "much"},
        {"sampling-rate": 2},
        {"steps": -5},
        {"run": 17},
        {"steps": None},
    ],
)
def test_a_line_that_says_nothing_is_named(change: dict[str, Any]) -> None:
    good = spending(Mechanism(5.0, 0.5, 20)).content()
    report = read_account(io.BytesIO(account(good, {**good, **change}, good)))
    assert report.num_problems == 1
    assert report.problems[0].startswith("line 2 says nothing that can be accounted for (")
    assert len(report.spendings) == 2


def test_what_a_sum_comes_to_towards_the_public_is_kept_beside_what_counts() -> None:
    step = Mechanism(3.6, 0.5)
    spent = Spending("summed step", step, "da7a", "17", "2026-01-01T00:00:00+00:00", public=Mechanism(4.0, 0.5))
    assert Spending.of(spent.content()) == spent
    assert "public-noise-multiplier" not in spending(step).content()
    for wrong in ({"public-noise-multiplier": "much"}, {"public-noise-multiplier": 4.0, **spending(None).content()}):
        with pytest.raises(ValueError, match=r"could not convert|another kind"):
            Spending.of({**spent.content(), **wrong})
