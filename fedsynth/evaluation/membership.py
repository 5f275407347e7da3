"""Membership inference: how well an attacker tells training images from images that were never trained on.

Members and non-members must come from one distribution, otherwise the attack measures how the two sets differ. A weak
attack is no proof of privacy: a stronger one may exist, and only (ε, δ) bounds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import auc, roc_curve

from fedsynth.errors import UserError
from fedsynth.evaluation.memorisation import centred_samples, nearest_neighbours

Scores = npt.NDArray[np.float64]
PredictNoise = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(x_t (N, C, H, W), t, labels (N,)) -> ε (N, C, H, W)."""

FALSE_POSITIVE_RATE = 0.01


@dataclass(frozen=True)
class Membership:
    """The success of one attack.

    Attributes:
        n_members, n_non_members: images on each side.
        auc: area under the ROC curve; .5 is guessing, 1 is certainty.
        tpr_at_1_percent_fpr: share of members found when at most 1 % of the non-members are accused; .01 is guessing.
    """

    n_members: int
    n_non_members: int
    auc: float
    tpr_at_1_percent_fpr: float

    def row(self, attack: str) -> dict[str, int | float]:
        """Return flat, JSON-ready columns in kebab-case; ``attack`` begins each name."""
        return {
            f"{attack}members": self.n_members,
            f"{attack}non-members": self.n_non_members,
            f"{attack}membership-auc": self.auc,
            f"{attack}membership-tpr-at-1-percent-fpr": self.tpr_at_1_percent_fpr,
        }


def roc(member_scores: np.ndarray, non_member_scores: np.ndarray) -> Membership:
    """Judge an attack by its scores, as Carlini et al. 2022 (arXiv 2112.03570) ask: at few false accusations.

    The false positive rate moves in steps of 1 / M and is not interpolated. With fewer than 100 non-members the true
    positive rate is therefore the one without any false accusation: guessing gives less than .01 there, and one
    outlier among the non-members decides it. The standard error of the area is about
    ``√((N + M + 1) / (12 N M))`` for a guessing attack: .04 with 100 and 100 images.

    Args:
        member_scores: (N,), N >= 1; higher means "rather a member".
        non_member_scores: (M,), M >= 1.

    Raises:
        UserError: scores are not as above, NaN or infinite.
    """
    members = _scores("member scores", member_scores)
    non_members = _scores("non-member scores", non_member_scores)
    is_member = np.repeat([1, 0], [len(members), len(non_members)])
    # Dropped collinear points would hide the largest true positive rate below the limit.
    false_rates, true_rates, _ = roc_curve(is_member, np.concatenate([members, non_members]), drop_intermediate=False)
    return Membership(
        n_members=len(members),
        n_non_members=len(non_members),
        auc=float(auc(false_rates, true_rates)),
        tpr_at_1_percent_fpr=float(true_rates[false_rates <= FALSE_POSITIVE_RATE].max()),
    )


def _scores(name: str, scores: np.ndarray) -> Scores:
    if scores.ndim != 1 or len(scores) == 0:
        raise UserError(f"{name}: expected one score per image and at least one image, got {scores.shape}")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"{name}: {bad} of {len(scores)} are NaN or infinite; check the model that was attacked")
    return scores.astype(np.float64)


@torch.inference_mode()
def epsilon_errors(
    predict_noise: PredictNoise,
    images: torch.Tensor,
    labels: torch.Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: torch.Tensor,
    generator: torch.Generator,
) -> Scores:
    """Return the mean squared error of the predicted noise of each image: small for members, so the score is minus it.

    The loss at fixed noise levels as in Matsumoto et al. 2023 (arXiv 2302.03262), who find intermediate levels the most
    telling; Duan et al. 2023 (SecMI, arXiv 2302.01316) follow a deterministic path instead of adding fresh noise. The
    attack needs nothing but noise predictions ε(x_t, t, y): anyone who may query a silo for them can run it.

    Give members and non-members in one call: at each noise level all images get the same noise.

    Args:
        predict_noise: noise prediction ε(x_t, t, y).
        images: (N, C, H, W) in -1..1.
        labels: classes (N,).
        timesteps: noise levels, at least one, each from 0 to T - 1; their errors are averaged.
        alphas_cumprod: ᾱ (T,).
        generator: CPU source of the noise, one draw (C, H, W) per noise level.

    Returns:
        Errors (N,) >= 0; about 1 for a model that answers 0.

    Raises:
        UserError: no timesteps, or one outside 0..T - 1.
    """
    outside = [t for t in timesteps if not 0 <= t < len(alphas_cumprod)]
    if outside or len(timesteps) == 0:
        raise UserError(f"timesteps = {list(timesteps)}: give at least one, each from 0 to {len(alphas_cumprod) - 1}")
    errors = torch.zeros(len(images), dtype=torch.float64)
    for t in timesteps:
        x_t, noise = with_noise(images, float(alphas_cumprod[t]), generator)
        errors += squared_errors(predict_noise(x_t, t, labels), noise)
    mean: Scores = (errors / len(timesteps)).numpy()
    return mean


def with_noise(images: torch.Tensor, alpha_bar: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x_t = √ᾱ x_0 + √(1 - ᾱ) ε (N, C, H, W) (Ho et al. 2020, Eq. 4), and the ε (C, H, W) that all share."""
    noise = torch.randn(images.shape[1:], generator=generator)
    return alpha_bar**0.5 * images + (1 - alpha_bar) ** 0.5 * noise, noise


def squared_errors(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each prediction (N, C, H, W) of one noise (C, H, W), float64 (N,)."""
    return (predicted - noise).square().flatten(1).mean(dim=1, dtype=torch.float64)


def nearness_scores(candidates: np.ndarray, synthetic: np.ndarray) -> Scores:
    """Return minus the distance of each candidate to its nearest synthetic sample, higher for likely members.

    The attack on released images alone (Chen et al. 2020, GAN-Leaks, arXiv 1909.03935: full black-box), without their
    calibration by a reference model.

    Args:
        candidates: members or non-members, features or flattened pixels (N, D), N >= 2.
        synthetic: (M, D), M >= 2, in the same space.

    Returns:
        Scores (N,) <= 0.

    Raises:
        UserError: unequal D, fewer than two samples, NaN or infinite values.
    """
    candidates, synthetic = centred_samples(candidates=candidates, synthetic=synthetic)
    _, distances = nearest_neighbours(candidates, synthetic)
    return -distances
