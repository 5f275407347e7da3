from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from tiny_autoencoders import kl_of

import clients.copy_check
from clients.copy_check import copied_share
from fedsynth.config import RunConfig
from fedsynth.data import LabelledImages, Silo, load_dataset
from fedsynth.diffusion import build_unet, codec_of, to_model_range
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


def test_share_is_that_of_a_search_by_hand(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    silo = silo_of(60, 20)
    noisy = silo.train.images[10:20] + np.random.default_rng(0).normal(0, 10, size=(10, 8, 8, 1))
    mixed = np.concatenate([silo.train.images[:10], noisy.clip(0, 255).astype(np.uint8), TEST.images[:44]])
    monkeypatch.setattr(clients.copy_check, "sample", lambda *_: to_model_range(mixed))

    def nearest(images: np.ndarray) -> np.ndarray:
        differences = images[:, None].astype(float) - silo.train.images[None].astype(float)
        return np.sqrt(np.square(differences).sum(axis=(2, 3, 4))).min(axis=1)

    expected = np.mean(nearest(mixed) <= np.percentile(nearest(silo.holdout.images), 5))
    assert 20 / 64 <= expected < 0.5
    assert copied_share(silo, unet, SPEC, CONFIG) == pytest.approx(expected)
    assert caplog.text == "", "the server warns of it, once: in a simulation both would write to one log"


def test_a_model_of_latents_that_repeats_its_training_images_is_found(
    unet: UNet2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl_of().save_pretrained(tmp_path)
    config = RunConfig.from_run_config({"autoencoder": str(tmp_path)})
    silo, codec = silo_of(64, 20), codec_of(config, SPEC)
    shares = []
    for images in (silo.train.images, SHUFFLED.images[400:464]):
        monkeypatch.setattr(clients.copy_check, "sample", lambda *_, of=images: codec.encode(of))
        shares.append(copied_share(silo, unet, SPEC, config))
    assert shares[0] == 1
    assert shares[1] is not None
    assert shares[1] < 0.25


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


def test_held_out_images_that_are_few_or_were_trained_on_say_nothing(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    with monkeypatch.context() as patched:
        patched.setattr(clients.copy_check, "sample", None)
        assert copied_share(silo_of(100, 7), unet, SPEC, CONFIG) is None
    assert "silo-3: no copy check: 7 images are held out, it needs 8" in caplog.text
    silo = Silo("silo-3", TRAIN.subset(np.arange(40)), TRAIN.subset(np.arange(10)))
    assert copied_share(silo, unet, SPEC, CONFIG) is None
    assert "silo-3: no copy check: test: more than half of the samples are training samples too" in caplog.text


def test_of_many_held_out_images_as_many_at_random_take_part(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients.copy_check, "MOST_HELD_OUT", 30)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(clients.copy_check, "share_of_copies", lambda *sets: seen.append(sets[2]) or 0.25)
    silo = silo_of(60, 200)
    assert [copied_share(silo, unet, SPEC, CONFIG) for _ in range(2)] == [0.25, 0.25]
    assert copied_share(silo_of(60, 30), unet, SPEC, CONFIG) == 0.25
    assert (seen[0] == seen[1]).all()
    known = {image.tobytes() for image in silo.holdout.images}
    assert len({image.tobytes() for image in seen[0]} & known) == len(seen[0]) == 30
    assert len(seen[2]) == 30
