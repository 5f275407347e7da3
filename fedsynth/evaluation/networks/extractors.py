"""Feature extractors by name, behind one interface: uint8 images in, features and class logits out.

``domain-classifier`` and ``pixels`` need nothing but the images; ``inception-v3-compat`` (the features of FID, Heusel
et al. 2017) and ``dinov2-vit-s-14`` (Oquab et al. 2023) are torch-fidelity's, with weights from a file or a download.
"""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedsynth.config import AUTO
from fedsynth.errors import UserError, unknown_choice
from fedsynth.evaluation.array_checks import check_images, check_same_image_shape
from fedsynth.evaluation.networks.domain_classifier import (
    FEATURE_DIMENSION,
    FEATURE_SPACE,
    DomainClassifier,
    classify,
    scale_pixels,
)

Images = npt.NDArray[np.uint8]
Outputs = tuple[torch.Tensor, torch.Tensor | None]

BATCH_SIZE = 64
PIXELS = "pixels"
INCEPTION = "inception-v3-compat"


@dataclass(frozen=True)
class Extracted:
    """What an extractor says of N images.

    Attributes:
        features: float32 (N, D), finite.
        logits: float32 (N, classes); None where the extractor is no classifier.
    """

    features: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None = None

    def __getitem__(self, chosen: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Extracted:
        """Return some of the images, by index, mask or slice."""
        return Extracted(self.features[chosen], None if self.logits is None else self.logits[chosen])

    def __len__(self) -> int:
        """Count the images."""
        return len(self.features)


class Extractor(ABC):
    """Maps images to features.

    Attributes:
        name: what a table calls the feature space.
        dimension: D of the features.
        content_hash: hex digest of all that the features depend on beside the images: weights, sizes, versions.
    """

    def __init__(self, name: str, dimension: int, content_hash: str) -> None:
        self.name = name
        self.dimension = dimension
        self.content_hash = content_hash

    @torch.inference_mode()
    def extract(self, images: Images) -> Extracted:
        """Return features and logits of uint8 images (N, H, W, C), computed 64 images at a time.

        Raises:
            UserError: the images are none, have another type or shape than the extractor takes, or their features are
                NaN or infinite.
        """
        check_images("images", images)
        answers = [self._outputs(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
        features = torch.cat([features for features, _ in answers]).float().cpu().numpy()
        logits = [logits for _, logits in answers if logits is not None]
        self._check_finite(features)
        return Extracted(features, torch.cat(logits).float().cpu().numpy() if logits else None)

    @abstractmethod
    def _outputs(self, images: Images) -> Outputs:
        """Features (N, D) and logits (N, classes) of one batch."""

    def _check_finite(self, features: npt.NDArray[np.float32]) -> None:
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        if bad:
            raise UserError(
                f"feature-extractor = {self.name}: the features of {bad} of {len(features)} images are NaN or "
                f"infinite, so its weights are damaged; {_remedy(self.name)}"
            )


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

EXTRACTORS = (FEATURE_SPACE, PIXELS, *_NETWORKS)


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
        self._device = torch.device(device)
        self._model = _load(name, weights_path).to(self._device)
        releases = [version(package) for package in ("torch-fidelity", "torch")]
        super().__init__(name, self._network.dimension, digest(name, *releases, weights=self._model.state_dict()))

    def _outputs(self, images: Images) -> Outputs:
        colour = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
        batch = torch.from_numpy(colour).permute(0, 3, 1, 2).contiguous().to(self._device)
        features, *logits = self._model(batch)
        return features, logits[0] if logits else None


def resolve_extractor(name: str, weights_path: Path | None = None) -> str:
    """Return ``name``, or for ``auto`` Inception if its weights are on disk and otherwise ``domain-classifier``.

    A download is never the choice of ``auto``: institutions run behind firewalls.
    """
    if name != AUTO:
        return name
    return INCEPTION if weights_path is not None or _downloaded_inception().is_file() else FEATURE_SPACE


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
        device: for the same.

    Raises:
        UserError: the name is unknown, or weights cannot be had.
        ValueError: ``domain-classifier`` without a classifier.
    """
    if name not in EXTRACTORS:
        raise unknown_choice("feature-extractor", name, EXTRACTORS)
    if name == PIXELS:
        return PixelExtractor(image_shape)
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
    if name not in _NETWORKS:
        return "train the classifier again"
    return f"{_NETWORKS[name].weights_from}, or set feature-extractor = {FEATURE_SPACE}, which needs none"


def digest(*words: str, weights: Mapping[str, torch.Tensor] | None = None) -> str:
    """Return the SHA-256 (hex) of words and, in their order, of a network's weights."""
    content = hashlib.sha256(repr(words).encode())
    for name, tensor in (weights or {}).items():
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1).view(np.uint8).data)
    return content.hexdigest()
