from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

import clients.copy_check
from clients.copy_check import copied_share
from fedsynth.config import RunConfig
from fedsynth.data import LabelledImages, Silo, load_dataset
from fedsynth.diffusion import build_unet, to_model_range
from fedsynth.spec import ImageSpec

CONFIG = RunConfig()
SPEC = ImageSpec(1, 8, tuple(map(str, range(10))))
TRAIN, TEST = load_dataset("digits")


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    """A network that knows nothing."""
    return build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8), 1)


# Neighbours in the dataset were written by one hand.
SHUFFLED = TRAIN.subset(np.random.default_rng(0).permutation(len(TRAIN)))


def silo_of(train: int, held_out: int) -> Silo:
    return Silo("silo-3", SHUFFLED.subset(np.arange(train)), SHUFFLED.subset(np.arange(1000, 1000 + held_out)))


@pytest.fixture
def model_returns(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], None]:
    """Have every model return these images."""

    def patch(images: np.ndarray) -> None:
        monkeypatch.setattr(clients.copy_check, "sample", lambda *_: to_model_range(images))

    return patch


def test_model_that_returns_training_images_copies_even_with_a_little_noise(
    unet: UNet2DModel, model_returns: Callable[[np.ndarray], None], caplog: pytest.LogCaptureFixture
) -> None:
    silo, rng = silo_of(100, 12), np.random.default_rng(0)
    model_returns(silo.train.images[:64])
    assert copied_share(silo, unet, SPEC, CONFIG) == 1.0
    noisy = silo.train.images[:64] + rng.normal(0, 10, size=(64, 8, 8, 1))
    model_returns(noisy.clip(0, 255).astype(np.uint8))
    share = copied_share(silo, unet, SPEC, CONFIG)
    assert share is not None
    assert share > 0.9
    # The server warns of it, once: in a simulation both would write to one log.
    assert "near-copies" not in caplog.text


def test_model_as_good_as_new_images_has_a_share_near_one_in_twenty(
    unet: UNet2DModel, model_returns: Callable[[np.ndarray], None], caplog: pytest.LogCaptureFixture
) -> None:
    model_returns(TEST.images[:64])
    share = copied_share(silo_of(800, 400), unet, SPEC, CONFIG)
    # 64 draws of a chance of .05 are more than 9 in 3 cases of 1,000.
    assert share is not None
    assert share <= 9 / 64
    assert caplog.text == ""


def test_share_is_that_of_a_search_by_hand(unet: UNet2DModel, model_returns: Callable[[np.ndarray], None]) -> None:
    silo = silo_of(60, 20)
    mixed = np.concatenate([silo.train.images[:20], TEST.images[:44]])
    model_returns(mixed)

    def nearest(images: np.ndarray) -> np.ndarray:
        differences = images[:, None].astype(float) - silo.train.images[None].astype(float)
        return np.sqrt(np.square(differences).sum(axis=(2, 3, 4))).min(axis=1)

    expected = np.mean(nearest(mixed) <= np.percentile(nearest(silo.holdout.images), 5))
    assert 20 / 64 <= expected < 0.5
    assert copied_share(silo, unet, SPEC, CONFIG) == pytest.approx(expected)


def test_samples_are_64_in_the_silo_s_own_classes_and_always_the_same(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    real = clients.copy_check.sample

    def spy(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(clients.copy_check, "sample", spy)
    labels = np.repeat([2, 7], [30, 10])
    silo = Silo("silo-3", LabelledImages(TRAIN.images[:40], labels, TRAIN.classes), TRAIN.subset(np.arange(900, 910)))
    shares = [copied_share(silo, unet, SPEC, CONFIG) for _ in range(2)]
    assert shares[0] == shares[1]
    (_, scheduler, noise, asked, _), (_, _, again, _, _) = calls
    assert torch.bincount(asked, minlength=10).tolist() == [0, 0, 48, 0, 0, 0, 0, 16, 0, 0]
    assert noise.shape == (64, 1, 8, 8)
    assert torch.equal(noise, again)
    assert 10 <= len(scheduler.timesteps) <= 12


def test_few_held_out_images_say_nothing(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    monkeypatch.setattr(clients.copy_check, "sample", None)
    assert copied_share(silo_of(100, 7), unet, SPEC, CONFIG) is None
    assert "silo-3: no copy check: 7 images are held out, it needs 8" in caplog.text


def test_held_out_images_that_were_trained_on_say_nothing(unet: UNet2DModel, caplog: pytest.LogCaptureFixture) -> None:
    silo = Silo("silo-3", TRAIN.subset(np.arange(40)), TRAIN.subset(np.arange(10)))
    assert copied_share(silo, unet, SPEC, CONFIG) is None
    assert "silo-3: no copy check: test: more than half of the samples are training samples too" in caplog.text
