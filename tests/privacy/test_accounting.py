"""ε and σ against reference values, closed forms and an independent accountant."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from scipy.special import log_ndtr

from fedsynth.privacy import Geometric, Mechanism, epsilon, noise_multiplier_for

DELTA = 1e-5


def renyi_bound(mechanism: Mechanism) -> float:
    """ε by Rényi differential privacy (Mironov et al. 2019), which is never below the best."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    step = dp_accounting.PoissonSampledDpEvent(
        mechanism.sampling_rate, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    )
    return float(RdpAccountant().compose(step, mechanism.steps).get_epsilon(DELTA))


def gaussian_delta(sigma: float, eps: float) -> float:
    """δ of the Gaussian mechanism at sensitivity 1 (Balle & Wang 2018, Eq. 6)."""
    near, far = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
    return math.exp(log_ndtr(near)) - math.exp(eps + log_ndtr(far))


@pytest.mark.parametrize(
    ("mechanism", "reference"),
    [
        # Opacus' PRV accountant and dp-accounting's PLD agree on 9.30; RDP says 9.99.
        (Mechanism(5.71, 32 / 300, 10_000), 9.30),
        (Mechanism(26.5, 0.5, 200), 1.0),
        (Mechanism(9.9, 0.5, 200), 3.0),
        (Mechanism(13.9, 1.0, 100), 3.0),
        (Mechanism(5.0, 1.0, 100), 10.0),
    ],
)
def test_reference_values(mechanism: Mechanism, reference: float) -> None:
    found = epsilon([mechanism], DELTA)
    assert found == pytest.approx(reference, abs=0.005)
    assert found < renyi_bound(mechanism) < 1.15 * found


def test_full_batches_are_one_gaussian_mechanism() -> None:
    found = epsilon([Mechanism(20.0, 1.0, 16)], DELTA)
    # Sixteen releases with noise σ are one with σ/4.
    assert gaussian_delta(5.0, found) < DELTA < gaussian_delta(5.0, found - 2e-3)


def test_geometric_noise_is_pure() -> None:
    assert epsilon([Geometric(scale=4.0, sensitivity=2)], 1e-12) == pytest.approx(0.5, abs=1e-3)
    # At δ > 0 an ε that is a little smaller is enough (Ghosh et al. 2012): δ = (1 - e^(ε-1)) / (1 + e^-1) at scale 1.
    assert epsilon([Geometric(1.0)], 0.1) == pytest.approx(1 + math.log(1 - 0.1 * (1 + math.exp(-1))), abs=1e-3)


def test_the_same_in_parts_costs_the_same() -> None:
    whole = epsilon([Mechanism(20.0, 0.5, 200)], DELTA)
    parts = [Mechanism(20.0, 0.5, 60), Mechanism(20.0, 0.5, 80), Mechanism(20.0, 0.5, 60), Mechanism(20.0, 0.5, 0)]
    assert epsilon(parts, DELTA) == pytest.approx(whole, abs=1e-2)


def test_different_mechanisms_cost_less_than_their_sum_and_more_than_each() -> None:
    training, counts = Mechanism(9.9, 0.5, 200), Geometric(1.0)
    together = epsilon([training, counts], DELTA)
    assert max(epsilon([training], DELTA), 1.0) < together < epsilon([training], DELTA / 2) + 1.0


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == epsilon([Mechanism(1.0, 0.1, 0)], DELTA) == 0


@pytest.mark.parametrize(
    ("target", "rate", "steps", "reference"),
    [(1.0, 0.5, 200, 26.5), (3.0, 0.5, 200, 9.9), (10.0, 1.0, 100, 5.0)],
)
def test_noise_multiplier_meets_its_target(target: float, rate: float, steps: int, reference: float) -> None:
    sigma = noise_multiplier_for(target, DELTA, rate, steps)
    assert sigma == pytest.approx(reference, rel=0.005)
    assert epsilon([Mechanism(sigma, rate, steps)], DELTA) <= target
    assert epsilon([Mechanism(0.999 * sigma, rate, steps)], DELTA) > target


def test_noise_multiplier_makes_room_for_what_was_before() -> None:
    before = [Geometric(1.0), Mechanism(40.0, 1.0, 50)]
    sigma = noise_multiplier_for(3.0, DELTA, 1.0, 100, before)
    assert sigma > 13.9, "what it takes without"
    assert 2.99 < epsilon([*before, Mechanism(sigma, 1.0, 100)], DELTA) <= 3.0
    with pytest.raises(ValueError, match="no noise is enough after"):
        noise_multiplier_for(0.9, DELTA, 0.5, 200, before)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mechanism(0.0), "noise multiplier 0.0"),
        (lambda: Mechanism(math.nan), "noise multiplier nan"),
        (lambda: Mechanism(1.0, 0.0), "sampling rate 0.0"),
        (lambda: Mechanism(1.0, 1.1), "sampling rate 1.1"),
        (lambda: Mechanism(1.0, 0.5, -1), "-1 steps"),
        (lambda: Geometric(0.0), "scale 0.0"),
        (lambda: Geometric(1.0, 0), "sensitivity 0"),
        (lambda: epsilon([], 0.0), "δ = 0.0"),
        (lambda: noise_multiplier_for(0.0, DELTA, 0.5, 10), "ε = 0.0"),
        (lambda: noise_multiplier_for(1.0, DELTA, 0.5, 0), "0 steps"),
    ],
)
def test_values_out_of_range_are_named(make: object, says: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=says):
        make()


def test_accountant_is_imported_where_something_is_accounted_for() -> None:
    code = "import sys, fedsynth.privacy; print('dp_accounting' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
