from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.mixture import choose_experts
from fedsynth.mixture.experts import BLOCK

SHARES = torch.tensor([[0.5, 0.0], [0.3, 0.0], [0.15, 0.4], [0.05, 0.6]], dtype=torch.float64)
"""Of four silos in two classes."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_a_sample_has_equal_experts_that_hold_its_class(experts: int) -> None:
    labels = torch.arange(60) % 2
    chosen = choose_experts(SHARES.log()[:, labels], labels, experts, generator())
    weights = chosen.exp()
    assert (weights.sum(0) - 1).abs().max() < 1e-12
    count = torch.where(labels == 0, torch.tensor(experts), torch.tensor(min(experts, 2)))
    assert ((weights > 0).sum(0) == count).all()
    assert (weights[:2, labels == 1] == 0).all(), "nobody else is asked"


def test_samples_of_a_block_share_their_experts_and_blocks_differ() -> None:
    labels = torch.zeros(5 * BLOCK, dtype=torch.int64)
    chosen = choose_experts(SHARES.log()[:, labels], labels, 2, generator())
    blocks = chosen.exp().T.reshape(5, BLOCK, 4)
    assert (blocks == blocks[:, :1]).all()
    assert len(torch.unique(blocks[:, 0], dim=0)) > 1


def test_one_expert_is_drawn_with_its_prior_weight() -> None:
    draws = 4000
    labels = torch.zeros(draws * BLOCK, dtype=torch.int64)
    weights = choose_experts(SHARES.log()[:, labels], labels, 1, generator()).exp()
    # Five standard deviations of a binomial share.
    bound = 5 * np.sqrt(0.25 / draws)
    np.testing.assert_allclose(weights.mean(1), SHARES[:, 0], atol=bound)


def test_columns_that_nobody_may_answer_stay_so() -> None:
    labels = torch.tensor([0, 1, 1])
    prior = SHARES.log()[:, labels]
    prior[:, 1:] = -torch.inf
    chosen = choose_experts(prior, labels, 2, generator())
    assert torch.isneginf(chosen[:, 1:]).all()
    assert chosen[:, 0].exp().sum() == pytest.approx(1)
