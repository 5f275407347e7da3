"""A ResNet-18 (He et al. 2016) as utility classifier: torchvision's network, fine-tuned or trained from scratch."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import check_images, check_labelled_images
from fedsynth.seeding import initial_weights

RESNET_STEPS = 300
BATCH_SIZE = 64
LEARNING_RATE_FROM_SCRATCH = 1e-3
LEARNING_RATE_PRETRAINED = 2e-4
# The last feature map is 1/32 of the input: 4 x 4 here, for a third of the work of ImageNet's 224 pixels.
SIDE_PRETRAINED = 128
SMALLEST_SIDE, LARGEST_SIDE = 32, 224
# Of ImageNet's pixels in 0..1, as torchvision's weights expect them.
CHANNEL_MEANS = (0.485, 0.456, 0.406)
CHANNEL_STDS = (0.229, 0.224, 0.225)

Weights = Mapping[str, torch.Tensor]


class ResNetClassifier(nn.Module):
    """torchvision's ``resnet18`` with a new head, from uint8 images to logits.

    Grey images are repeated to three channels; all are resized to a square (bilinear, antialiased) and normalised with
    ImageNet's means and stds. From pretrained weights the square has 128 pixels, since their filters look for
    structure on that scale. From scratch it has the longer side of the images, as nothing is gained by enlarging them,
    but at least the 32 pixels that the network halves five times, and at most 224.

    Args:
        image_size: longer side of the images in pixels.
        num_classes: number of classes.
        weights: state dict of a ``resnet18`` as from :func:`load_weights`; None: initial weights from torch's global
            generator, from which the head is drawn in either case.
    """

    network: nn.Module
    means: torch.Tensor
    stds: torch.Tensor

    def __init__(self, image_size: int, num_classes: int, weights: Weights | None = None) -> None:
        super().__init__()
        self.side = min(max(SMALLEST_SIDE, image_size), LARGEST_SIDE) if weights is None else SIDE_PRETRAINED
        self.network = _resnet18_without_head()
        if weights is not None:
            self.network.load_state_dict(weights)
        self.network.fc = nn.Linear(512, num_classes)
        self.register_buffer("means", torch.tensor(CHANNEL_MEANS).view(3, 1, 1), persistent=False)
        self.register_buffer("stds", torch.tensor(CHANNEL_STDS).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images (N, H, W, C), 1 or 3 channels, to logits (N, classes)."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        colour = pixels.expand(-1, 3, -1, -1)
        resized = nn.functional.interpolate(colour, (self.side, self.side), mode="bilinear", antialias=True)
        logits: torch.Tensor = self.network((resized - self.means) / self.stds)
        return logits


def _resnet18_without_head() -> nn.Module:
    # Here, because importing torchvision takes seconds that a silo need not spend.
    from torchvision.models import resnet18

    network: nn.Module = resnet18()
    network.fc = nn.Identity()
    return network


def train_resnet(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    num_classes: int,
    seed: int,
    weights: Weights | None = None,
    device: str | torch.device = "cpu",
    steps: int = RESNET_STEPS,
    batch_size: int = BATCH_SIZE,
) -> ResNetClassifier:
    """Train a :class:`ResNetClassifier` for a fixed number of steps, whatever the size of the set.

    Cross-entropy, AdamW, one-cycle learning rate up to 1e-3, or 2e-4 for all layers of a pretrained network, and no
    augmentation (our choices: mirroring changes the meaning of a digit). Every batch is full, so a set smaller than a
    batch appears in it several times: batch normalisation needs more than one image. The same arguments give the same
    weights on one CPU with one thread count; the global random state is left as it was.

    Args:
        images: uint8 (N, H, W, C), N >= 1.
        labels: integers (N,) from 0 to ``num_classes - 1``; classes may be missing.
        num_classes: number of outputs.
        seed: fixes initial weights (from pretrained ones: of the head) and batches.
        weights: start from them, as from :func:`load_weights`; None: from scratch.
        device: where it trains.
        steps: optimiser steps, at least 2.
        batch_size: images per step, at least 2.

    Returns:
        The classifier in evaluation mode, on ``device``.

    Raises:
        UserError: images or labels are not as above.
    """
    check_labelled_images("training images", images, labels, num_classes)
    model = _initial_classifier(max(images.shape[1:3]), num_classes, seed, weights).to(device)
    rate = LEARNING_RATE_FROM_SCRATCH if weights is None else LEARNING_RATE_PRETRAINED
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for batch in _batches(len(images), steps, batch_size, seed):
        targets = torch.from_numpy(labels[batch].astype(np.int64)).to(device)
        loss = nn.functional.cross_entropy(model(torch.from_numpy(images[batch]).to(device)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _initial_classifier(image_size: int, num_classes: int, seed: int, weights: Weights | None) -> ResNetClassifier:
    with initial_weights(seed):
        return ResNetClassifier(image_size, num_classes, weights).train()


def _batches(count: int, steps: int, batch_size: int, seed: int) -> BatchSampler:
    """Batches of indices: passes over the set, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(range(count), num_samples=steps * batch_size, generator=generator)
    return BatchSampler(order, batch_size, drop_last=False)


@torch.inference_mode()
def predict_resnet_labels(model: ResNetClassifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the most probable class (N,) of uint8 images (N, H, W, C), computed 64 at a time where the model is."""
    check_images("images", images)
    device = next(model.parameters()).device
    # copy(): torch warns of read-only arrays.
    parts = (images[start : start + BATCH_SIZE].copy() for start in range(0, len(images), BATCH_SIZE))
    labels = [model(torch.from_numpy(part).to(device)).argmax(dim=1).cpu() for part in parts]
    return torch.cat(labels).numpy()


def resnet_origin(weights: Path | None) -> str:
    """Return a sentence on where the ResNet-18 starts; ``weights`` and errors as for :func:`load_weights`."""
    load_weights(weights)
    if weights is not None:
        return f"the ResNet-18 started from the weights in {weights.name}"
    if (found := _hub_file()) is not None:
        return f"the ResNet-18 started from ImageNet weights in {found.name}"
    return "the ResNet-18 was trained from scratch: no pretrained weights were at hand (resnet-weights-path)"


def load_weights(weights: Path | None) -> dict[str, torch.Tensor] | None:
    """Read pretrained weights of a ``resnet18`` without its head; nothing is ever downloaded.

    Args:
        weights: file with the state dict of torchvision's ``resnet18``, for any number of classes; None: the ImageNet
            weights that torchvision itself keeps in torch's hub folder (``TORCH_HOME``), if they are there.

    Returns:
        The state dict, on the CPU; None if there are no weights to start from.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    path = weights if weights is not None else _hub_file()
    if path is None:
        return None
    try:
        return _read(path)
    except Exception as error:  # whatever disk, unpickling and layers that do not match raise
        raise _unusable(path, error, named=weights is not None) from error


def _hub_file() -> Path | None:
    from torchvision.models import ResNet18_Weights

    name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    return path if path.is_file() else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise TypeError(f"a state dict is expected, not {type(state).__name__}")
    body = {name: tensor for name, tensor in state.items() if name not in ("fc.weight", "fc.bias")}
    with torch.device("meta"):  # nothing to initialise, and the global random state stays as it was
        empty = _resnet18_without_head()
    empty.load_state_dict(body, assign=True)
    if not all(tensor.isfinite().all() for tensor in body.values()):
        raise ValueError("some of its weights are NaN or infinite")
    return body


def _unusable(path: Path, error: Exception, named: bool) -> UserError:
    reason = str(error).strip().partition("\n")[0].rstrip(":") or type(error).__name__
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif isinstance(error, pickle.UnpicklingError):
        reason = "it is not a file of tensors alone"
    key = (
        f"resnet-weights-path = {path}" if named else f"resnet-weights-path is empty and torch's hub folder has {path}"
    )
    otherwise = "leave the key empty" if named else "remove that file"
    return UserError(
        f"{key}: no ResNet-18 can be read from it ({reason}); give a file with the state dict of torchvision's "
        f"resnet18, or {otherwise}"
    )
