from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3, registry
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fedsynth.errors import UserError
from fedsynth.evaluation import DomainClassifier, extract_features
from fedsynth.evaluation.networks.domain_classifier import classify
from fedsynth.evaluation.networks.extractor import Extracted, Extractor
from fedsynth.evaluation.networks.extractors import EXTRACTORS, create_extractor, resolve_extractor

INCEPTION, DINO = "inception-v3-compat", "dinov2-vit-s-14"


class WithoutWeights(FeatureExtractorInceptionV3):
    """Keeps its initial weights, whatever the file holds."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        """Load nothing."""


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> WithoutWeights:
    """Inception-v3 with random weights of a scale that keeps activations near one through all layers."""
    nothing = tmp_path_factory.mktemp("weights") / "nothing.pth"
    torch.save({}, nothing)
    model = WithoutWeights(INCEPTION, ["2048", "logits_unbiased"], str(nothing))
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, generator=generator)
    return model


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights) -> Extractor:
    return create_extractor(INCEPTION, (16, 16, 1), weights_path=weights)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Sixteen grey images: noise of growing contrast."""
    noise = np.random.default_rng(0).normal(size=(16, 16, 16, 1))
    return (128 + noise * np.linspace(5, 60, 16)[:, None, None, None]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def extracted(inception, images) -> Extracted:
    return inception.extract(images)


def test_sixteen_images_pass_through_inception_from_a_file(inception, extracted):
    assert (inception.name, inception.dimension) == (INCEPTION, 2048)
    assert extracted.features.shape == (16, 2048)
    assert extracted.features.dtype == np.float32
    assert extracted.logits.shape == (16, 1008)
    assert len(np.unique(extracted.features, axis=0)) == 16


def test_inception_logits_are_the_head_without_its_bias(network, extracted):
    expected = extracted.features @ network.fc.weight.numpy().T
    np.testing.assert_allclose(extracted.logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_grey_images_are_repeated_and_batches_do_not_matter(network, inception, images, extracted):
    colour = np.concatenate([images[3:5]] * 3, axis=3)
    with torch.inference_mode():
        direct, _ = network(torch.from_numpy(colour).permute(0, 3, 1, 2))
    scale = np.abs(extracted.features).max()
    np.testing.assert_allclose(inception.extract(colour).features, direct, atol=1e-5 * scale)
    np.testing.assert_allclose(extracted.features[3:5], direct, atol=1e-5 * scale)


def test_weights_that_are_not_finite_are_refused_before_any_image(network, tmp_path):
    state = dict(network.state_dict())
    state["Mixed_7c.branch1x1.bn.bias"] = torch.full((320,), torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(
        UserError, match=r"nan.pth \(some of its weights are NaN or infinite\); set feature-extractor-we"
    ):
        create_extractor(INCEPTION, (16, 16, 1), weights_path=tmp_path / "nan.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"\(No such file or directory\)"),
        (b"<html>please log in</html>", "not a file of tensors alone"),
        ({"fc.weight": torch.zeros(2, 2)}, "Error.* loading state_dict"),
        ([1, 2], "a state dict is expected, not list"),
        ({"model": torch.nn.Linear(1, 1)}, "not a file of tensors alone"),
    ],
)
def test_a_file_without_the_weights_is_refused_with_the_key_and_the_alternative(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as refusal:
        create_extractor(INCEPTION, (8, 8, 3), weights_path=path)
    assert f"feature-extractor = {INCEPTION}: its weights cannot be read from {path}" in str(refusal.value)
    assert "set feature-extractor-weights-path to a file" in str(refusal.value)
    assert "feature-extractor = domain-classifier" in str(refusal.value)


def test_a_failed_download_is_refused_with_the_key_and_the_alternative(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded .*no route to host.* set feature-extractor-weights"):
        create_extractor(INCEPTION, (8, 8, 3))


@pytest.fixture
def hub_file(tmp_path, monkeypatch) -> Path:
    """Where torch's hub keeps Inception's weights: nothing is there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = feature_extractor_inceptionv3.URL_INCEPTION_V3.rpartition("/")[2]
    return tmp_path / "hub" / "checkpoints" / name


def test_auto_is_inception_only_if_weights_are_at_hand(hub_file):
    small = 8, 8, 1
    assert resolve_extractor("auto", small) == "domain-classifier"
    assert resolve_extractor("auto", small, Path("given.pth")) == INCEPTION
    hub_file.parent.mkdir(parents=True)
    hub_file.touch()
    assert resolve_extractor("auto", small) == INCEPTION


def test_a_damaged_download_is_named(hub_file):
    hub_file.parent.mkdir(parents=True)
    hub_file.write_bytes(b"<html>please log in</html>")
    with pytest.raises(UserError, match=f"its weights cannot be read from {hub_file} .* set feature-extractor-weights"):
        create_extractor(INCEPTION, (8, 8, 3))


class Patches(torch.nn.Module):
    """Stands for the hub's network: mean colour of 14 x 14 patches, mapped to 384 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 384, 14, stride=14)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, 224, 224) to (N, 384)."""
        assert images.shape[1:] == (3, 224, 224)
        return self.patches(images).mean(dim=(2, 3))


def test_dinov2_comes_from_the_hub_and_has_no_logits(monkeypatch, images):
    asked = []
    monkeypatch.setattr(torch.hub, "load", lambda *words: asked.append(words) or Patches())
    extractor = create_extractor(DINO, (16, 16, 1))
    extracted = extractor.extract(images[:3])
    assert asked == [("facebookresearch/dinov2", "dinov2_vits14")]
    assert extracted.features.shape == (3, extractor.dimension) == (3, 384)
    assert extracted.logits is None


def test_dinov2_takes_no_weights_file(weights):
    with pytest.raises(UserError, match=r"leave feature-extractor-weights-path empty.* = domain-classifier"):
        create_extractor(DINO, (8, 8, 3), weights_path=weights)


def test_pixels_are_flattened_and_scaled(images):
    extractor = create_extractor("pixels", (16, 16, 1))
    expected = images.reshape(16, 256) / 127.5 - 1
    np.testing.assert_allclose(extractor.extract(images).features, expected, atol=1e-6)
    assert (extractor.name, extractor.dimension) == ("pixels", 256)
    assert extractor.extract(images).logits is None
    assert create_extractor("pixels", (16, 8, 2)).content_hash != extractor.content_hash


def test_the_domain_classifier_gives_its_features_and_logits(digits, classifier):
    extractor = create_extractor("domain-classifier", (8, 8, 1), classifier)
    extracted = extractor.extract(digits.test_images)
    np.testing.assert_allclose(
        extracted.features, extract_features(classifier, digits.test_images), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(extracted.logits, classify(classifier, digits.test_images)[0], rtol=1e-3, atol=1e-4)
    assert (extractor.name, extractor.dimension) == ("domain-classifier", 64)
    again, other = (
        create_extractor("domain-classifier", (8, 8, 1), c) for c in (classifier, DomainClassifier(1, 8, 10))
    )
    assert extractor.content_hash == again.content_hash != other.content_hash


def test_damaged_weights_are_named_when_features_are_not_finite():
    broken = DomainClassifier(1, 8, 10)
    torch.nn.init.constant_(broken.body[-2].bias, torch.nan)
    extractor = create_extractor("domain-classifier", (8, 8, 1), broken)
    with pytest.raises(UserError, match=r"the features of 3 of 3 images are NaN.*train the classifier again"):
        extractor.extract(np.zeros((3, 8, 8, 1), np.uint8))


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"\(9, 8, 1\).*bring both to one size"):
        create_extractor("pixels", (8, 8, 1)).extract(np.zeros((2, 9, 8, 1), np.uint8))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown feature-extractor 'pixel': did you mean 'pixels'\?.*inception-v3"):
        create_extractor("pixel", (8, 8, 1))
    assert set(EXTRACTORS) - {"pixels", "domain-classifier", "efficientnet-lite0"} <= set(
        registry.FEATURE_EXTRACTORS_REGISTRY
    )
