"""The feature space ``domain-classifier``: the last hidden layer of a small classifier of the real train fold.

A Fréchet distance in this space is not an FID: FID names the Inception-v3 features of Heusel et al. 2017.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import check_images, check_labelled_images
from fedsynth.seeding import initial_weights
from fedsynth.threads import one_thread

FEATURE_SPACE = "domain-classifier"
FEATURE_DIMENSION = 64
TRAINING_STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
SMALLEST_GRID = 16
"""Side in pixels from which the first convolution of a large image keeps no less."""


def scale_pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Map uint8 0..255 to float32 -1..1, any shape."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


ARCHITECTURE = 2
"""Raised with every change of the network or its training, and said in results: nothing kept of the last is taken."""


class DomainClassifier(nn.Module):
    """Convolutional classifier for images with sides of 8 pixels or more.

    Strided convolutions bring the shorter side to about 4 pixels, so the depth follows ``image_size``. From 32 pixels
    on the first convolution already takes steps of 2, 4, ... to a side of 16 to 31: full resolution would take most of
    the time, and little is learnt there.

    Args:
        channels: 1 or 3.
        image_size: shorter side of the images in pixels, at least 8.
        num_classes: number of classes.
    """

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        step = 2 ** max(0, int(math.log2(image_size / SMALLEST_GRID)))
        first = 32 if step == 1 else 64
        strided = max(1, round(math.log2(image_size / step / 4)))
        widths = [first] + [64] * strided
        self.body = nn.Sequential(
            _convolution(channels, first, stride=step, kernel=3 * step),
            *(_convolution(before, after, stride=2) for before, after in itertools.pairwise(widths)),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, FEATURE_DIMENSION),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURE_DIMENSION, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images (N, C, H, W) in -1..1 to logits (N, classes) and features (N, 64)."""
        features = self.body(images)
        return self.head(features), features


def _convolution(channels_in: int, channels_out: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 3),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
    )


@one_thread()
def train_domain_classifier(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    num_classes: int,
    seed: int,
    steps: int = TRAINING_STEPS,
    batch_size: int = BATCH_SIZE,
) -> DomainClassifier:
    """Train a :class:`DomainClassifier` for a fixed number of steps, whatever the size of the set.

    Cross-entropy, AdamW, one-cycle learning rate (our choice); no label smoothing, which draws the classes together so
    far that pure noise falls between them and keeps a high precision. It works on one thread, so that the same
    arguments give the same weights on one machine; the global random state is left as it was.

    Args:
        images: uint8 (N, H, W, C), N >= 1.
        labels: integers (N,) from 0 to ``num_classes - 1``; classes may be missing.
        num_classes: number of outputs.
        seed: fixes initial weights and batches.
        steps: optimiser steps, at least 2.
        batch_size: images per step.

    Returns:
        The classifier in evaluation mode, on the CPU.

    Raises:
        UserError: images or labels are not as above.
    """
    check_labelled_images("training images", images, labels, num_classes)
    model = initial_classifier(images.shape[3], min(images.shape[1:3]), num_classes, seed).train()
    targets = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for batch in batches(len(images), steps, batch_size, seed):
        logits, _ = model(network_input(images[batch.numpy()]))
        loss = nn.functional.cross_entropy(logits, targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def initial_classifier(channels: int, image_size: int, num_classes: int, seed: int) -> DomainClassifier:
    """Return a :class:`DomainClassifier`, whose arguments these are, with the initial weights of a seed."""
    with initial_weights(seed):
        return DomainClassifier(channels, image_size, num_classes)


def batches(count: int, steps: int, batch_size: int, seed: int) -> torch.Tensor:
    """Return indices (steps, batch_size) below ``count``: passes over a set, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(steps * batch_size / count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return order[: steps * batch_size].view(steps, batch_size)


def network_input(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 images (N, H, W, C) as a :class:`DomainClassifier` takes them: float32 (N, C, H, W), -1 to 1."""
    return torch.from_numpy(scale_pixels(images)).permute(0, 3, 1, 2).contiguous()


def extract_features(
    model: DomainClassifier, images: npt.NDArray[np.uint8], batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Return the features (N, 64) of uint8 images (N, H, W, C), computed ``batch_size`` at a time."""
    return classify(model, images, batch_size)[1].numpy()


def predict_labels(
    model: DomainClassifier, images: npt.NDArray[np.uint8], batch_size: int = 256
) -> npt.NDArray[np.int64]:
    """Return the most probable class (N,) of uint8 images (N, H, W, C), computed ``batch_size`` at a time."""
    return classify(model, images, batch_size)[0].argmax(dim=1).numpy()


@torch.inference_mode()
def classify(
    model: DomainClassifier, images: npt.NDArray[np.uint8], batch_size: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, classes) and features (N, 64) of uint8 images (N, H, W, C), on the CPU wherever the model is.

    Raises:
        UserError: the images are not as above or have not the channels of the training images.
    """
    check_images("images", images)
    if images.shape[3] != model.channels:
        raise UserError(
            f"images have {images.shape[3]} channel(s), the feature classifier was trained on {model.channels}; "
            "bring both sets of images to one channel count"
        )
    device = model.head.weight.device
    starts = range(0, len(images), batch_size)
    answers = [model(network_input(images[start : start + batch_size]).to(device)) for start in starts]
    logits, features = zip(*answers, strict=True)
    return torch.cat(logits).cpu(), torch.cat(features).cpu()
