"""The classifier that silos train together: supervised, or with FixMatch on unlabelled images besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedsynth.diffusion.augmentation import SHIFT, augmented
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, batches, network_input
from fedsynth.few_labels.selection import CONFIDENCE
from fedsynth.seeding import derive_seed
from fedsynth.threads import one_thread

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
CUT_SHARE = 2
"""A strong variant loses a square whose side is 1/2 of the image's."""
CONTRAST, BRIGHTNESS = 0.5, 0.25
"""A strong variant's values are scaled by 1 ± .5 and moved by ± .25, of a range from -1 to 1."""

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A piece of the training of a classifier.

    Attributes:
        steps: optimiser steps of this piece.
        first_step: steps before it.
        all_steps: steps of the whole training, over which the learning rate falls to 0 as a cosine.
        learning_rate: at the first of them.
        batch_size: images per step, and as many unlabelled ones.
        augment: variants of images that could be real ones, see :func:`fedsynth.diffusion.augmentation.augmented`;
            images are shifted in any case.
        seed: of batches and variants.
    """

    steps: int
    first_step: int
    all_steps: int
    learning_rate: float
    batch_size: int
    augment: Sequence[str]
    seed: int

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this piece, from 0."""
        done = min(1.0, (self.first_step + step) / self.all_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@one_thread()
def train_classifier(
    model: DomainClassifier,
    images: Images,
    labels: NDArray[np.int64],
    piece: Slice,
    unlabelled: Images | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train in place with cross-entropy and SGD with momentum, a fresh optimiser; it works on one thread.

    With ``unlabelled`` images the loss of FixMatch (Sohn et al. 2020, arXiv 2001.07685, Eq. 4) is added with weight 1:
    a strong variant of an image is to be classified as a weak one is, where that is confident.

    Args:
        model: the classifier.
        images: uint8 (N, H, W, C), N >= 1.
        labels: (N,) below the model's number of classes.
        piece: how long, how fast, from which seed.
        unlabelled: uint8 (M, H, W, C), M >= 1.
        on_step: called after every step.

    Returns:
        The loss of every step.
    """
    device = model.head.weight.device
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=piece.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    generator = torch.Generator().manual_seed(piece.seed)
    names = tuple(dict.fromkeys((SHIFT, *piece.augment)))
    order = batches(len(images), piece.steps, piece.batch_size, derive_seed(piece.seed, "labelled"))
    others = (
        None
        if unlabelled is None
        else batches(len(unlabelled), piece.steps, piece.batch_size, derive_seed(piece.seed, "unlabelled"))
    )
    model.train()
    losses = []
    for step in range(piece.steps):
        for group in optimizer.param_groups:
            group["lr"] = piece.rate(step)
        rows = order[step]
        weak = augmented(network_input(images[rows.numpy()]), names, generator)
        loss = functional.cross_entropy(model(weak.to(device))[0], targets[rows].to(device))
        if unlabelled is not None and others is not None:
            fresh = augmented(network_input(unlabelled[others[step].numpy()]), names, generator)
            with torch.no_grad():
                believed = model(fresh.to(device))[0]
            varied = model(_strongly_varied(fresh, generator).to(device))[0]
            loss = loss + consistency_loss(believed, varied)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        on_step()
    model.eval()
    return losses


def consistency_loss(weak: torch.Tensor, strong: torch.Tensor, confidence: float = CONFIDENCE) -> torch.Tensor:
    """Return FixMatch's loss on unlabelled images, the mean of 1[max p ≥ confidence] H(argmax p, strong).

    Args:
        weak: logits of weak variants (N, C), whose softmax is p.
        strong: logits of strong ones (N, C).
        confidence: from which a prediction counts.
    """
    sure, predicted = weak.softmax(1).max(1)
    loss = functional.cross_entropy(strong, predicted, reduction="none")
    return (loss * (sure >= confidence)).mean()


def _strongly_varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change contrast and brightness of every image (n, C, H, H) in -1..1, and cut a square out of it (our choice)."""
    count, size = len(images), images.shape[-1]
    draws = 2 * torch.rand((2, count, 1, 1, 1), generator=generator) - 1
    varied = (images * (1 + CONTRAST * draws[0]) + BRIGHTNESS * draws[1]).clamp(-1, 1)
    side = max(1, size // CUT_SHARE)
    corners = torch.randint(0, size - side + 1, (2, count, 1), generator=generator)
    inside = (torch.arange(size) >= corners) & (torch.arange(size) < corners + side)
    return varied.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.0)
