from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, resnet34

from fedsynth.errors import UserError
from fedsynth.evaluation.networks.resnet import (
    LEARNING_RATE_PRETRAINED,
    ResNetClassifier,
    _batches,
    load_weights,
    predict_resnet_labels,
    resnet_origin,
    train_resnet,
)

HUB_NAME = "resnet18-f37072fd.pth"


@pytest.fixture(autouse=True)
def torch_home(tmp_path, monkeypatch) -> Path:
    """An empty torch folder, so that weights on this computer change no test."""
    home = tmp_path / "torch-home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    """A resnet18 for seven classes whose every tensor is random, running statistics too."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        network = resnet18(num_classes=7)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture
def weights_file(source, tmp_path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    return path


def stripes(count: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Upright (label 0) and level (label 1) stripes of random contrast under noise, uint8 (N, 8, 8, C)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    upright = np.tile([0, 0, 1, 1, 0, 0, 1, 1], (8, 1))
    pattern = np.where(labels[:, None, None] == 0, upright, upright.T)[..., None]
    noise = rng.integers(0, 60, (count, 8, 8, channels))
    return (pattern * rng.integers(60, 190, (count, 1, 1, 1)) + noise).astype(np.uint8), labels


def test_stripes_are_learnt_from_scratch():
    model = train_resnet(*stripes(40, 1, seed=0), num_classes=2, seed=0, steps=20, batch_size=16)
    images, labels = stripes(30, 1, seed=1)
    images.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(predict_resnet_labels(model, images), labels)


def test_training_is_fixed_by_its_seed_and_leaves_the_global_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    images, labels = stripes(6, 1, seed=0)
    first, again, other = (train_resnet(images, labels, 2, seed, steps=2, batch_size=4) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.network.fc.weight, other.network.fc.weight)


def test_every_pass_visits_every_image_once_and_every_batch_is_full():
    visited = list(_batches(count=6, steps=3, batch_size=8, seed=0))
    assert [len(batch) for batch in visited] == [8, 8, 8]
    for visits in np.reshape(visited, (4, 6)).tolist():
        assert sorted(visits) == list(range(6))


@pytest.mark.parametrize(("longer_side", "side"), [(8, 32), (32, 32), (48, 48), (300, 224)])
def test_from_scratch_the_input_is_as_large_as_the_images_within_bounds(longer_side, side):
    assert ResNetClassifier(longer_side, 2).side == side


@torch.no_grad()
def test_pretrained_input_is_resized_and_normalised_as_for_imagenet(source, weights_file):
    model = ResNetClassifier(128, 7, load_weights(weights_file)).eval()
    model.network.fc.load_state_dict(source.fc.state_dict())
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    by_hand = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = source(torch.from_numpy(by_hand).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(model(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-4)
    # An even picture looks the same at any size, in grey as in three equal channels.
    large = np.full((1, 256, 256, 1), 90, np.uint8)
    small = np.full((1, 128, 128, 3), 90, np.uint8)
    torch.testing.assert_close(model(torch.from_numpy(large)), model(torch.from_numpy(small)), rtol=1e-4, atol=1e-4)


def test_training_starts_from_the_weights_of_the_file(source, weights_file):
    images, labels = stripes(4, 1, seed=0)
    model = train_resnet(images, labels, 2, seed=0, weights=load_weights(weights_file), steps=2, batch_size=2)
    parameters = dict(model.network.named_parameters())
    for name, before in source.named_parameters():
        if name.startswith("fc."):
            assert parameters[name].shape[0] == 2
            continue
        moved = (parameters[name] - before).abs().max().item()
        # AdamW moves a weight by little more than the learning rate a step, and every layer is trained.
        assert 0 < moved < 3 * LEARNING_RATE_PRETRAINED, name


def test_without_a_file_or_a_hub_folder_it_starts_from_scratch():
    assert load_weights(None) is None
    assert resnet_origin(None) == (
        "the ResNet-18 was trained from scratch: no pretrained weights were at hand (resnet-weights-path)"
    )


def test_weights_in_the_hub_folder_are_found(source, torch_home):
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(source.state_dict(), checkpoints / HUB_NAME)
    assert resnet_origin(None) == f"the ResNet-18 started from ImageNet weights in {HUB_NAME}"
    assert torch.equal(load_weights(None)["conv1.weight"], source.conv1.weight)


def test_a_named_file_goes_before_the_hub_folder(weights_file, source, torch_home):
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / HUB_NAME).write_bytes(b"damaged")
    assert resnet_origin(weights_file) == "the ResNet-18 started from the weights in weights.pth"
    assert torch.equal(load_weights(weights_file)["conv1.weight"], source.conv1.weight)
    with pytest.raises(UserError, match=r"resnet-weights-path is empty and .*f37072fd\.pth: .* or remove that file"):
        load_weights(None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda state, path: path.write_bytes(b""), ""),
        (lambda state, path: path.unlink(), "no such file"),
        (lambda state, path: torch.save(resnet34().state_dict(), path), "loading state_dict for ResNet"),
        (lambda state, path: torch.save(list(state.values()), path), "not list"),
        (lambda state, path: torch.save(Path("x"), path), "not a file of tensors alone"),
        (lambda state, path: torch.save({**state, "bn1.bias": torch.full((64,), torch.nan)}, path), "NaN or infinite"),
    ],
    ids=["empty", "missing", "resnet34", "list", "pickle", "nan"],
)
def test_a_file_without_a_sound_resnet18_is_refused(source, weights_file, damage, reason):
    damage(source.state_dict(), weights_file)
    with pytest.raises(UserError, match=rf"resnet-weights-path = .*weights\.pth: .*{reason}.*torchvision's resnet18"):
        load_weights(weights_file)
