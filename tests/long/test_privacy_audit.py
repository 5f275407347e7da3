"""The audit of private training finds what there is to find: see :mod:`experiments.privacy_audit`."""

from __future__ import annotations

import pytest

from experiments.privacy_audit import CLAIMS, audited

TRAININGS, SEED = 300, 1


@pytest.mark.parametrize(("target", "rate", "steps"), CLAIMS)
def test_attacks_prove_less_than_is_claimed_unless_noise_is_missing(target: float, rate: float, steps: int) -> None:
    sound, broken = (audited(target, rate, steps, noise, TRAININGS, SEED) for noise in (1.0, 0.0))
    assert target - 1e-3 < sound.claimed <= target
    assert max(sound.proven, sound.proven_of_sums, sound.proven_of_weights) < sound.claimed
    assert min(broken.proven, broken.proven_of_sums, broken.proven_of_weights) > broken.claimed


def test_noise_that_is_too_small_by_half_is_found() -> None:
    audit = audited(3.0, 1.0, 2, 0.5, 1000, 0)
    assert audit.proven_of_sums > audit.claimed
