from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_models import CPU, config_of, epsilon, model_of

import clients.models.local_model
from clients.models.local_model import load_network
from fedsynth.data import Silo, load_federation
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    early_stopping,
)
from fedsynth.seeding import make_generator

# So large a rate that the loss goes up and down.
ROUGH: dict[str, Any] = {"train_steps": 24, "learning_rate": 0.1, "ema_decay": 0.3, "batch_size": 8}


@pytest.fixture
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check after every second step."""
    monkeypatch.setattr(early_stopping, "MIN_INTERVAL", 2)


def held_out_loss_by_hand(folder: Path, silo: Silo) -> float:
    """Mean squared error in float64 over 256 pairs drawn here."""
    draw = make_generator(0, "held-out-loss", silo.name)
    count = len(silo.holdout)
    rows = torch.cat([torch.randperm(count, generator=draw) for _ in range(-(-256 // count))])[:256]
    t = ((torch.arange(256) + torch.rand(256, generator=draw, dtype=torch.float64)) * 1000 / 256).long()
    noise = torch.randn(256, 1, 8, 8, generator=draw)
    images = torch.from_numpy(silo.holdout.images[rows.numpy()]).permute(0, 3, 1, 2).double() / 127.5 - 1
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t][:, None, None, None]
    noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise.double()
    labels = torch.from_numpy(silo.holdout.labels)[rows]
    with torch.no_grad():
        predicted = load_network(folder, CPU)(noisy.float(), t, class_labels=labels).sample
    return float((predicted.double() - noise.double()).square().mean())


@pytest.mark.usefixtures("frequent_checks")
def test_saved_weights_are_those_of_the_best_check(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    model, config = model_of(tmp_path, **ROUGH), config_of(**ROUGH)
    training = model.train_slice(1000.0)
    history = model.history()
    losses = history["held-out-losses"]
    assert history["held-out-steps"] == [2 * (k + 1) for k in range(training.steps // 2)]
    assert history["steps"][-1] == training.steps <= 24
    silo = load_federation(config).silo(0, config)
    assert held_out_loss_by_hand(model.folder, silo) == pytest.approx(min(losses), rel=1e-4)
    assert sorted(losses)[1] > 1.001 * min(losses), "for the test to mean anything"
    kept = history["held-out-steps"][losses.index(min(losses))]
    assert f"silo-0: training ended at step {training.steps} of 24, weights of step {kept:.0f} kept" in caplog.text


@pytest.mark.usefixtures("frequent_checks")
def test_early_stopping_in_slices_is_that_of_one_slice_even_when_slices_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    settings = {**ROUGH, "train_steps": 5}
    whole = model_of(tmp_path / "whole", **settings)
    whole.train_slice(1000.0)
    number, failing = 0, (2, 5)
    while not (sliced := model_of(tmp_path / "sliced", **settings)).finished:
        number += 1
        if number in failing:
            with monkeypatch.context() as patched:
                patched.setattr(torch, "save", full_disk)
                patched.setattr(ClassConditionalDDPMPipeline, "save_pretrained", full_disk)
                with pytest.raises(OSError, match="No space left"):
                    sliced.train_slice(1e-9)
            sliced = model_of(tmp_path / "sliced", **settings)
        sliced.train_slice(1e-9)
    assert torch.equal(epsilon(sliced), epsilon(whole))
    one, other = sliced.history(), whole.history()
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.usefixtures("frequent_checks")
def test_too_few_held_out_images_mean_the_whole_budget_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    settings = {**ROUGH, "train_steps": 3, "holdout_fraction": 0.05}
    while not (model := model_of(tmp_path, **settings)).finished:
        training = model.train_slice(1e-9)
    assert (training.steps, training.held_out_losses) == (3, [])
    assert set(model.history()) == {"seconds", "steps", "losses"}
    assert caplog.text.count("silo-0: 2 held-out images are too few to stop early by") == 1
    assert model.copied_share() is None


def test_copies_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"train_steps": 1, "holdout_fraction": 0.4}
    model = model_of(tmp_path, **settings)
    model.train_slice(1000.0)
    share = model.copied_share()
    assert share is not None
    assert 0 <= share <= 0.3, "noise is no copy"
    monkeypatch.setattr(clients.models.local_model, "copied_share", None)
    assert model_of(tmp_path, **settings).copied_share() == share
    assert model_of(tmp_path, **settings, copy_check=False).copied_share() is None
