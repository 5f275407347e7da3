"""Feature extractors by name, behind one interface.

``domain-classifier`` and ``pixels`` need nothing but the images; ``efficientnet-lite0`` needs two optional packages;
``inception-v3-compat`` (the features of FID, Heusel et al. 2017) and ``dinov2-vit-s-14`` (Oquab et al. 2023) are
torch-fidelity's, with weights from a file or a download.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import nn

from fedsynth.config import AUTO
from fedsynth.errors import UserError, unknown_choice
from fedsynth.evaluation.array_checks import check_same_image_shape
from fedsynth.evaluation.networks.domain_classifier import (
    FEATURE_DIMENSION,
    FEATURE_SPACE,
    DomainClassifier,
    classify,
    scale_pixels,
)
from fedsynth.evaluation.networks.efficientnet import EFFICIENTNET, EfficientNetExtractor, is_installed
from fedsynth.evaluation.networks.extractor import Extractor, Images, Outputs, digest

PIXELS = "pixels"
INCEPTION = "inception-v3-compat"
SMALLEST_PHOTOGRAPH = 32
"""Shorter side in pixels from which ``auto`` takes a network that was trained on photographs: of fewer pixels, little
is left for it to see, and a small classifier of the same images sees more."""


class PixelExtractor(Extractor):
    """The pixels themselves, flattened and scaled to -1..1.

    Args:
        image_shape: (H, W, C) of all images.
    """

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__(PIXELS, int(np.prod(image_shape)), digest(PIXELS, str(tuple(image_shape))))
        self._image_shape = tuple(image_shape)

    def _outputs(self, images: Images) -> Outputs:
        check_same_image_shape("images", images, self._image_shape)
        return torch.from_numpy(scale_pixels(images)).flatten(start_dim=1), None


class ClassifierExtractor(Extractor):
    """The last hidden layer and the logits of a :class:`DomainClassifier`, on whatever device it is."""

    remedy = "train the classifier again"

    def __init__(self, model: DomainClassifier) -> None:
        super().__init__(FEATURE_SPACE, FEATURE_DIMENSION, digest(FEATURE_SPACE, weights=model.state_dict()))
        self._model = model

    def _outputs(self, images: Images) -> Outputs:
        logits, features = classify(self._model, images)
        return features, logits


@dataclass(frozen=True)
class _Network:
    """Names of torch-fidelity's layers, of the features, D of them, and of the logits; how to get the weights."""

    features: str
    dimension: int
    logits: str | None
    weights_from: str

    @property
    def layers(self) -> list[str]:
        return [self.features, *([self.logits] if self.logits else [])]


_NETWORKS = {
    # Logits without bias: those of the published Inception scores (Salimans et al. 2016), as torch-fidelity has them.
    INCEPTION: _Network(
        "2048", 2048, "logits_unbiased", "set feature-extractor-weights-path to a file with its state dict"
    ),
    "dinov2-vit-s-14": _Network(
        "dinov2",
        384,
        None,
        "leave feature-extractor-weights-path empty and let torch hub download facebookresearch/dinov2, or copy its "
        "folder from another machine (TORCH_HOME)",
    ),
}

EXTRACTORS = (FEATURE_SPACE, PIXELS, EFFICIENTNET, *_NETWORKS)


class TorchFidelityExtractor(Extractor):
    """A network of torch-fidelity, which resizes the images as the network's reference implementation does.

    Grey images are repeated to three channels.

    Args:
        name: ``inception-v3-compat`` or ``dinov2-vit-s-14``.
        weights_path: file with its state dict; None: torch-fidelity's own download, kept in torch's hub folder.
        device: where it computes.

    Raises:
        UserError: the weights cannot be read or downloaded, are of another network, or hold NaN or infinity.
    """

    def __init__(self, name: str, weights_path: Path | None = None, device: str | torch.device = "cpu") -> None:
        self._network = _NETWORKS[name]
        self.remedy = _remedy(name)
        self._device = torch.device(device)
        self._model = _load(name, weights_path).to(self._device)
        releases = [version(package) for package in ("torch-fidelity", "torch")]
        super().__init__(name, self._network.dimension, digest(name, *releases, weights=self._model.state_dict()))

    def _outputs(self, images: Images) -> Outputs:
        colour = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
        batch = torch.from_numpy(colour).permute(0, 3, 1, 2).contiguous().to(self._device)
        features, *logits = self._model(batch)
        return features, logits[0] if logits else None


def resolve_extractor(name: str, image_shape: tuple[int, ...], weights_path: Path | None = None) -> str:
    """Return ``name``, or for ``auto`` the most public feature space that is at hand.

    That is Inception if its weights are on disk; otherwise ``efficientnet-lite0`` if it is installed and images
    (H, W, C) have 32 pixels or more; otherwise ``domain-classifier``. A download is never the choice of ``auto``:
    institutions run behind firewalls.
    """
    if name != AUTO:
        return name
    if weights_path is not None or _downloaded_inception().is_file():
        return INCEPTION
    return EFFICIENTNET if min(image_shape[:2]) >= SMALLEST_PHOTOGRAPH and is_installed() else FEATURE_SPACE


def _downloaded_inception() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(URL_INCEPTION_V3).name


def create_extractor(
    name: str,
    image_shape: tuple[int, ...],
    classifier: DomainClassifier | None = None,
    weights_path: Path | None = None,
    device: str | torch.device = "cpu",
) -> Extractor:
    """Build the extractor called ``name``.

    Args:
        name: one of :data:`EXTRACTORS`.
        image_shape: (H, W, C) of the images; for ``pixels``.
        classifier: trained on the real train fold; for ``domain-classifier``, and it stays on its device.
        weights_path: for the networks of torch-fidelity; None: their own download.
        device: for the same, and ``efficientnet-lite0``.

    Raises:
        UserError: the name is unknown, or weights cannot be had.
        ValueError: ``domain-classifier`` without a classifier.
    """
    if name not in EXTRACTORS:
        raise unknown_choice("feature-extractor", name, EXTRACTORS)
    if name == PIXELS:
        return PixelExtractor(image_shape)
    if name == EFFICIENTNET:
        return EfficientNetExtractor(device)
    if name in _NETWORKS:
        return TorchFidelityExtractor(name, weights_path, device)
    if classifier is None:
        raise ValueError(f"{name} needs a classifier trained on the real train fold")
    return ClassifierExtractor(classifier)


def _load(name: str, weights_path: Path | None) -> nn.Module:
    # Here, because torch-fidelity loads torchvision: seconds that a silo need not spend.
    from torch_fidelity.utils import create_feature_extractor

    if weights_path is not None:
        _check_state_dict(name, weights_path)
    path = None if weights_path is None else str(weights_path)
    try:
        network: nn.Module = create_feature_extractor(
            name, _NETWORKS[name].layers, cuda=False, feature_extractor_weights_path=path, verbose=False
        )
        _check_weights(network)
    except Exception as error:  # whatever network, disk, unpickling and layers that do not match raise
        if weights_path is None and name == INCEPTION and _downloaded_inception().is_file():
            weights_path = _downloaded_inception()
        raise _without_weights(name, weights_path, error) from error
    return network


def _check_state_dict(name: str, path: Path) -> None:
    """Raise unless the file holds tensors alone: torch-fidelity would run code that a pickle carries."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _without_weights(name, path, error) from error
    if not isinstance(state, Mapping):
        raise _without_weights(name, path, TypeError(f"a state dict is expected, not {type(state).__name__}"))


def _check_weights(network: nn.Module) -> None:
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise ValueError("some of its weights are NaN or infinite")


def _without_weights(name: str, path: Path | None, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
    if isinstance(error, pickle.UnpicklingError):
        reason = "it is not a file of tensors alone"
    elif isinstance(error, NotImplementedError):
        reason = "this network takes no weights file"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    failed = "its weights could not be downloaded" if path is None else f"its weights cannot be read from {path}"
    return UserError(f"feature-extractor = {name}: {failed} ({reason}); {_remedy(name)}")


def _remedy(name: str) -> str:
    return f"{_NETWORKS[name].weights_from}, or set feature-extractor = {FEATURE_SPACE}, which needs none"
