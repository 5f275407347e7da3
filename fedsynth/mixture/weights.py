"""Responsibilities: how much each silo counts for each sample."""

from __future__ import annotations

from typing import Any

import torch

from fedsynth.mixture.compose import row_slices

LEAST_NOISE = 0.1
"""√(1-ᾱ) below which a move is not counted: an error e of x_0 is an error of √ᾱ e / √(1-ᾱ) of ε."""


def responsibilities(log_prior: torch.Tensor, energies: torch.Tensor, lam: float) -> torch.Tensor:
    """Energy weights w̃_i = w_i exp(-λ f_i) / Σ_j w_j exp(-λ f_j) (Hahn & Lee, NeurIPS 2025, Eq. 9), in log space.

    Args:
        log_prior: log of the prior weights, (K,) or (K, N); ``-inf`` excludes a silo.
        energies: energies (K, N) from :func:`~fedsynth.mixture.energy.energy`.
        lam: energy scale λ ≥ 0; 0 returns the normalised prior.

    Returns:
        Weights (K, N), at least float32, each column sums to 1.
    """
    dtype = torch.promote_types(torch.promote_types(log_prior.dtype, energies.dtype), torch.float32)
    # In float32 an energy of 1e6 would round the prior away.
    prior = log_prior.double() if log_prior.ndim == 2 else log_prior.double()[:, None]
    # A silo that was not asked has no energy: whatever stands there must not turn its zero weight into NaN.
    logits = (prior - lam * energies.double()).masked_fill(torch.isneginf(prior), -torch.inf)
    return torch.softmax(logits, dim=0).to(dtype)  # Eq. (9)


def temper(logits: torch.Tensor, log_prior: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divide what the evidence adds to the prior by a temperature: between the posterior (1) and the prior (∞).

    Args:
        logits: log posterior weights (K, N), each column up to a constant.
        log_prior: log prior weights (K, N); ``-inf`` excludes a silo.
        temperature: at least 1; 1 returns ``logits`` to the bit.

    Returns:
        (K, N), each column up to a constant.
    """
    if temperature == 1:
        return logits
    tempered = log_prior + (logits - log_prior) / temperature
    return tempered.masked_fill(torch.isneginf(log_prior), -torch.inf)


def effective_experts(weights: torch.Tensor) -> torch.Tensor:
    """Effective number of silos behind each sample, exp(H(w̃)): 1 when one silo decides, K when all count alike.

    Args:
        weights: responsibilities (K, N).

    Returns:
        (N,) in [1, K].
    """
    entropy: torch.Tensor = torch.special.entr(weights).sum(0)
    return entropy.exp()


class PathPosterior:
    """Posterior weights p(silo | path of the sample) for samplers whose moves carry noise.

    By Bayes along the reverse path the logit of silo i gains -‖x_s - m_i(x_t)‖² / (2v) at every move t → s, where
    m_i and v are the mean and the variance of the ancestral step under ε_i alone, unclipped (after the Itô density
    estimator of SuperDiff, Skreta et al. 2025, arXiv 2412.17762). No extra message or network call is needed.
    Bayes' rule holds for whatever made the move; that silo i's own step is Gaussian holds near its own ancestral moves.
    So it is for ancestral moves and those of stochastic solvers, on any grid of levels, not for Langevin moves at a
    fixed noise level, and not for deterministic ones, which no model's own step would make.

    Args:
        log_prior: log of the prior weights, (K,) or (K, N); ``-inf`` excludes a silo for good.

    Attributes:
        logits: log posterior weights in float64, (K, N), or (K, 1) before the first update of a (K,) prior.
    """

    def __init__(self, log_prior: torch.Tensor) -> None:
        self.logits = log_prior.double() if log_prior.ndim == 2 else log_prior.double()[:, None]

    @property
    def weights(self) -> torch.Tensor:
        """Weights for the next step, of the shape of ``logits``; columns sum to 1."""
        return torch.softmax(self.logits, dim=0)

    def update(
        self,
        x_t: torch.Tensor,
        x_prev: torch.Tensor,
        eps: torch.Tensor,
        scheduler: Any,
        t: int,
        answered: torch.Tensor | None = None,
    ) -> None:
        """Account for one move from ``x_t`` to ``x_prev``.

        The move to clean data has no variance and says nothing, and moves from samples of little noise
        (:data:`LEAST_NOISE`, our choice) say more of the networks' errors than of the silos: they leave the weights as
        they are. Logits are normalised over the silos after every move, since one answer is worth about d/2 nats. A
        silo that did not answer keeps its weight and the others share the rest.

        Args:
            x_t: samples before the move (N, C, H, W), at timestep ``t``.
            x_prev: samples after it (N, C, H, W).
            eps: noise predictions (K, N, C, H, W) at ``x_t``; entries of excluded silos are ignored.
            scheduler: the diffusers scheduler that moved the samples, with its timesteps set.
            t: timestep of ``x_t``.
            answered: whether silo k answered for sample n, (K, N) boolean; None: all did.
        """
        later = scheduler.timesteps[scheduler.timesteps < t]
        alpha_bar_t = scheduler.alphas_cumprod[t].double()
        if not len(later) or 1 - alpha_bar_t < LEAST_NOISE**2:
            return
        alpha_bar_s = scheduler.alphas_cumprod[later.max()].double()
        variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
        scale = (alpha_bar_s / alpha_bar_t).sqrt()
        pull = (1 - alpha_bar_s - variance).sqrt() - scale * (1 - alpha_bar_t).sqrt()
        # x_s - m_i = (x_s - scale·x_t) - pull·ε_i with m_i = scale (x_t - √(1-ᾱ_t) ε_i) + √(1-ᾱ_s-v) ε_i.
        # One buffer for all distances: a small result kept from each slice would pin the memory the slice gave back.
        distance = torch.empty(eps.shape[:2], dtype=torch.float64)
        for rows in row_slices(eps):
            target = x_prev[rows].double() - scale * x_t[rows].double()
            distance[:, rows] = (target - pull * eps[:, rows].double()).flatten(2).square().sum(2)
        gain = -distance / (2 * variance)
        counted = (~torch.isneginf(self.logits) & (True if answered is None else answered)).expand_as(gain)
        before = torch.log_softmax(self.logits, dim=0).expand_as(gain)
        ours = before.masked_fill(~counted, -torch.inf)
        # The total weight of those that answered stays as it was, so that the others keep theirs.
        mass = torch.logsumexp(ours, dim=0)
        shifted = (ours + gain).masked_fill(~counted, -torch.inf)
        after = shifted - torch.logsumexp(shifted, dim=0) + mass
        self.logits = torch.where(counted, after, before)
