"""What makes features of images: uint8 images in, features and class logits out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import check_images

Images = npt.NDArray[np.uint8]
Outputs = tuple[torch.Tensor, torch.Tensor | None]

BATCH_SIZE = 64


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
        remedy: what to do when its features are not finite.
    """

    remedy = "choose another"

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
                f"infinite, so its weights are damaged; {self.remedy}"
            )


def digest(*words: str, weights: Mapping[str, torch.Tensor] | None = None) -> str:
    """Return the SHA-256 (hex) of words and, in their order, of a network's weights."""
    content = hashlib.sha256(repr(words).encode())
    for name, tensor in (weights or {}).items():
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1).view(np.uint8).data)
    return content.hexdigest()
