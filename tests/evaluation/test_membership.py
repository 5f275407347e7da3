from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation.membership import Membership, epsilon_errors, nearness_scores, roc
from fedsynth.seeding import make_generator

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)


def auc_by_pairs(members: np.ndarray, non_members: np.ndarray) -> float:
    """Share of pairs in which the member scores higher; a tie counts half."""
    return float(np.mean([(m > n) + 0.5 * (m == n) for m in members for n in non_members]))


def tpr_by_thresholds(members: np.ndarray, non_members: np.ndarray) -> float:
    thresholds = [*members, *non_members, np.inf]
    allowed = [t for t in thresholds if np.sum(non_members >= t) * 100 <= len(non_members)]
    return max(float(np.mean(members >= t)) for t in allowed)


def test_six_scores_by_hand():
    # Ranked 9 m, 7 m, 6 n, 5 m, 3 n, 1 n: the member at 5 loses against one non-member of three. Without a false
    # accusation the threshold lies above 6, which finds two members of three.
    assert roc(np.array([9.0, 5.0, 7.0]), np.array([1.0, 6.0, 3.0])) == Membership(
        n_members=3,
        n_non_members=3,
        auc=pytest.approx(8 / 9, rel=1e-12),
        tpr_at_1_percent_fpr=pytest.approx(2 / 3, rel=1e-12),
    )


@pytest.mark.parametrize("non_members", [99, 350])
def test_agrees_with_pairs_and_thresholds_with_ties(non_members):
    rng = np.random.default_rng(non_members)
    scores = rng.integers(0, 40, 60) + 5.0, rng.integers(0, 40, non_members) + 0.0
    attack = roc(*scores)
    assert attack.auc == pytest.approx(auc_by_pairs(*scores), rel=1e-12)
    assert attack.tpr_at_1_percent_fpr == pytest.approx(tpr_by_thresholds(*scores), rel=1e-12)


def test_one_false_accusation_in_a_hundred_is_allowed_and_one_in_ninety_nine_is_not():
    members, non_members = np.arange(10.0), np.full(100, -1.0)
    non_members[0] = 99.0
    assert roc(members, non_members).tpr_at_1_percent_fpr == 1.0
    assert roc(members, non_members[:99]).tpr_at_1_percent_fpr == 0.0


def test_points_on_one_line_do_not_hide_the_rate_below_the_limit():
    # Two members and one non-member at every threshold: the whole curve is straight, in steps of 1 / 400.
    members, non_members = np.repeat(np.arange(400), 2), np.arange(400)
    assert roc(members, non_members).tpr_at_1_percent_fpr == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (np.array([]), "member scores: expected one score per image"),
        (np.ones((3, 2)), "member scores: expected one score per image"),
        (np.array([1.0, np.nan, np.inf]), "member scores: 2 of 3"),
    ],
)
def test_unusable_scores_are_refused(members, message):
    with pytest.raises(UserError, match=message):
        roc(members, np.array([0.0]))


def draw_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(0, "membership-images", count)
    return 2 * torch.rand((count, 1, 4, 4), generator=generator) - 1, torch.arange(count) % 10


def test_a_model_that_memorised_is_found_out():
    images, labels = draw_images(60)

    def predict(x: torch.Tensor, t: int, y: torch.Tensor) -> torch.Tensor:
        exact = (x - ALPHAS_CUMPROD[t].sqrt() * images) / (1 - ALPHAS_CUMPROD[t]).sqrt()
        return torch.where(torch.arange(60)[:, None, None, None] < 30, exact, exact.roll(1, dims=0) + 1)

    scores = -epsilon_errors(predict, images, labels, (50, 150), ALPHAS_CUMPROD, make_generator(0, "membership-noise"))
    attack = roc(scores[:30], scores[30:])
    assert (attack.auc, attack.tpr_at_1_percent_fpr) == (1.0, 1.0)


def test_errors_agree_with_the_formula_in_float64():
    images, labels = draw_images(5)
    predict = lambda x, t, y: 0.3 * x + t / 1000 + 0.1 * y[:, None, None, None]  # noqa: E731
    measured = epsilon_errors(predict, images, labels, (20, 700), ALPHAS_CUMPROD, make_generator(3, "noise"))
    generator = make_generator(3, "noise")
    expected = np.zeros(5)
    for t in (20, 700):
        noise = torch.randn((1, 4, 4), generator=generator).double().numpy()
        alpha_bar = float(ALPHAS_CUMPROD[t])
        for i in range(5):
            x_t = math.sqrt(alpha_bar) * images[i].double().numpy() + math.sqrt(1 - alpha_bar) * noise
            expected[i] += np.mean((0.3 * x_t + t / 1000 + 0.1 * float(labels[i]) - noise) ** 2) / 2
    assert measured.dtype == np.float64
    assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("timesteps", [(), (0, 1000), (-1,)])
def test_impossible_timesteps_are_refused(timesteps):
    images, labels = draw_images(2)
    with pytest.raises(UserError, match="each from 0 to 999"):
        epsilon_errors(lambda x, t, y: x, images, labels, timesteps, ALPHAS_CUMPROD, make_generator(0, "noise"))


def test_nearness_agrees_with_a_double_loop():
    rng = np.random.default_rng(0)
    candidates, synthetic = rng.normal(size=(12, 3)) + 1e4, rng.normal(size=(20, 3)) + 1e4
    expected = [-min(np.linalg.norm(c - s) for s in synthetic) for c in candidates]
    assert nearness_scores(candidates, synthetic) == pytest.approx(expected, rel=1e-12)
