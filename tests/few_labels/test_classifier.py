from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.evaluation import predict_labels
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, initial_classifier
from fedsynth.few_labels.classifier import Slice, _strongly_varied, consistency_loss, train_classifier

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 24)
IMAGES = (RNG.integers(0, 60, (24, 8, 8, 1)) + 150 * LABELS[:, None, None, None]).astype(np.uint8)


def piece(steps: int, first: int = 0, seed: int = 0) -> Slice:
    return Slice(
        steps=steps, first_step=first, all_steps=20, learning_rate=0.05, batch_size=8, augment=("flip",), seed=seed
    )


def trained(steps: int, unlabelled: bool = False) -> tuple[DomainClassifier, list[float]]:
    model = initial_classifier(1, 8, 2, 3)
    return model, train_classifier(model, IMAGES, LABELS, piece(steps), IMAGES if unlabelled else None)


def test_the_loss_on_unlabelled_images_by_hand() -> None:
    weak = torch.log(torch.tensor([[0.96, 0.04], [0.94, 0.06], [0.01, 0.99]]))
    strong = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]))
    # The second is not sure enough; of the others -log .5 and -log .1.
    assert float(consistency_loss(weak, strong)) == pytest.approx((np.log(2) + np.log(10)) / 3)
    assert float(consistency_loss(weak[1:2], strong[1:2])) == 0.0


def test_the_learning_rate_falls_to_nothing_over_all_rounds() -> None:
    assert piece(5).rate(0) == 0.05
    assert piece(5, first=10).rate(0) == pytest.approx(0.025)
    assert piece(5, first=15).rate(5) == pytest.approx(0.0, abs=1e-12)


def test_it_learns_and_the_same_seed_gives_the_same_weights() -> None:
    model, losses = trained(20)
    assert (predict_labels(model, IMAGES) == LABELS).all()
    assert losses[-1] < losses[0]
    again, same = trained(20)
    assert same == losses
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_unlabelled_images_add_to_the_loss() -> None:
    _, alone = trained(3)
    _, both = trained(3, unlabelled=True)
    assert both[0] >= alone[0]
    assert len(both) == 3


def test_a_strong_variant_has_a_square_of_grey_and_stays_in_range() -> None:
    images = torch.full((6, 3, 8, 8), 0.8)
    varied = _strongly_varied(images, torch.Generator().manual_seed(0))
    assert varied.shape == images.shape
    assert varied.abs().max() <= 1
    assert ((varied == 0).sum((1, 2, 3)) == 3 * 16).all()
