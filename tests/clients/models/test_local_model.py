from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from own_models import CPU, config_of, epsilon, model_of

from clients.models.local_model import LocalModel, load_network
from fedsynth import __version__
from fedsynth.data import LabelledImages, Silo, load_federation
from fedsynth.diffusion import (
    MIN_HELD_OUT,
    ClassConditionalDDPMPipeline,
    TrainingState,
    initial_unet,
    noise_predictor,
    to_model_range,
    train,
)
from fedsynth.errors import UserError
from fedsynth.seeding import make_generator


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_model_is_the_plain_training_of_its_silo_averaged(tmp_path: Path) -> None:
    model, config = model_of(tmp_path, 1), config_of()
    assert not model.finished
    model.train_slice(1000.0)
    assert model.finished

    federation = load_federation(config)
    images = federation.silo(1, config).train
    generator = make_generator(0, "local-training", "silo-1")
    state = TrainingState(initial_unet(config, federation.spec), config.training, generator)
    pixels, labels = to_model_range(images.images), torch.from_numpy(images.labels)
    losses = train(state, pixels, labels, config.training, config.diffusion, 5)
    expected = state.averaged_unet().state_dict()
    loaded = load_network(model.folder, CPU).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    history = model.history()
    assert history["losses"] == losses
    assert history["steps"] == [1, 2, 3, 4, 5]
    assert history["seconds"] > 0


def test_slices_end_in_the_model_of_one_slice_bit_for_bit(tmp_path: Path) -> None:
    whole = model_of(tmp_path / "whole")
    whole.train_slice(1000.0)
    steps = []
    while True:
        # Another object each time, as in another process: only the disk connects the slices.
        sliced = model_of(tmp_path / "sliced")
        if sliced.finished:
            break
        steps.append(sliced.train_slice(1e-9).steps)
    assert steps == [1, 2, 3, 4, 5]
    assert torch.equal(epsilon(sliced), epsilon(whole))
    assert sliced.history()["losses"] == whole.history()["losses"]
    names = [
        [path.relative_to(tmp_path / kind) for path in files_below(tmp_path / kind)] for kind in ("whole", "sliced")
    ]
    assert names[0] == names[1]


def test_slices_hash_the_images_of_an_open_silo_once_and_convert_batches_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, converted = [], []
    fingerprint = LabelledImages.fingerprint

    def counted_hash(images: LabelledImages) -> str:
        hashed.append(len(images))
        return fingerprint(images)

    def counted_conversion(images: np.ndarray) -> torch.Tensor:
        converted.append(len(images))
        return to_model_range(images)

    monkeypatch.setattr(LabelledImages, "fingerprint", counted_hash)
    monkeypatch.setattr("fedsynth.diffusion.images.to_model_range", counted_conversion)
    config = config_of(batch_size=4)
    federation = load_federation(config)
    silo = federation.silo(0, config)
    for _ in range(5):
        LocalModel(silo, federation.spec, config, tmp_path).train_slice(1e-9)
    assert len(silo.holdout) >= MIN_HELD_OUT, "slices stop early, and convert the held-out pairs too"
    assert hashed == [len(silo.train), len(silo.holdout)]
    assert converted == [256, 4] * 5


def test_reload_answers_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    training = model.train_slice(1000.0)
    x = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    in_memory = noise_predictor(training.unet)(x, 500, torch.tensor([0, 3, 3, 9]))
    assert torch.equal(epsilon(model_of(tmp_path)), in_memory)


def test_model_opens_with_diffusers(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.train_slice(1000.0)
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(model.folder)
    assert isinstance(pipeline, DiffusionPipeline)
    assert list(pipeline.config.classes) == [str(digit) for digit in range(10)]
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    assert {path.suffix for path in files_below(model.folder)} == {".json", ".safetensors"}


def test_seconds_add_up_over_slices(tmp_path: Path) -> None:
    first = model_of(tmp_path).train_slice(1e-9).seconds
    second = model_of(tmp_path).train_slice(1e-9).seconds
    assert 0 < first < second


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train_steps": 6},
        {"block_out_channels": "8,16"},
        {"layers_per_block": 2},
        {"model": "small"},
        {"batch_size": 16},
        {"learning_rate": 1e-3},
        {"ema_decay": 0.9},
        {"beta_end": 0.03},
        {"samples_per_client": 41},
        {"holdout_fraction": 0.3},
        {"early_stop": False},
        {"partition": "dirichlet"},
        {"silo": 1},
    ],
    ids=str,
)
def test_key_changes_with_all_that_training_depends_on(change: dict[str, Any], tmp_path: Path) -> None:
    assert model_of(tmp_path, **change).key != model_of(tmp_path).key


def test_key_changes_with_the_seed_even_for_the_same_images(tmp_path: Path) -> None:
    federation = load_federation(config_of())
    silo = federation.silo(0, config_of())
    keys = {LocalModel(silo, federation.spec, config_of(seed=seed), tmp_path).key for seed in (0, 1)}
    assert len(keys) == 2


def test_key_changes_with_one_pixel(tmp_path: Path) -> None:
    config = config_of()
    federation = load_federation(config)
    silo = federation.silo(0, config)
    images = silo.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    changed = Silo(silo.name, type(silo.train)(images, silo.train.labels, silo.train.classes), silo.holdout)
    keys = {LocalModel(one, federation.spec, config, tmp_path).key for one in (silo, changed)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "elsewhere"},
        {"run_name": "named"},
        {"state_dir": "elsewhere"},
        {"num_samples": 7},
        {"labels": "observed"},
        {"strategy": "pooled"},
        {"strategy": "fedavg", "num_rounds": 2},
        {"dfd_preset": "paper"},
        {"dfd_rounds": 3},
        {"sampling_steps": 3},
        {"wire_dtype": "float16"},
        {"reply_timeout": 1.0},
        {"evaluate": False},
        {"copy_check": False},
        {"device": "auto"},
    ],
    ids=str,
)
def test_key_does_not_change_with_what_training_does_not_see(change: dict[str, Any], tmp_path: Path) -> None:
    assert model_of(tmp_path, **change).key == model_of(tmp_path).key


def test_models_from_before_early_stopping_are_found_without_it(tmp_path: Path) -> None:
    config = config_of(early_stop=False, holdout_fraction=0.0)
    federation = load_federation(config)
    silo = federation.silo(0, config)
    training = {"train_steps": 5, "batch_size": 32, "learning_rate": 2e-4, "ema_decay": 0.995, "max_grad_norm": 1.0}
    before = {
        "fedsynth": __version__,
        "silo": "silo-0",
        "data": silo.fingerprint,
        "spec": [1, 8, *(str(digit) for digit in range(10))],
        "dataset": "digits",
        "seed": 0,
        "model": {"model": "auto", "block_out_channels": "8,8", "layers_per_block": "auto"},
        "training": {**training, "oversample": False, "mixed_precision": "no"},
        "diffusion": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    }
    key = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
    assert LocalModel(silo, federation.spec, config, tmp_path).key == key
    # Too few images to stop early by: the training is the same.
    assert model_of(tmp_path, holdout_fraction=0.0).key == key
    assert (
        model_of(tmp_path, holdout_fraction=0.05).key == model_of(tmp_path, holdout_fraction=0.05, early_stop=False).key
    )


@pytest.mark.parametrize("keep", [0, 10, 0.5, -4])
def test_torn_checkpoint_means_training_from_the_start(
    keep: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = model_of(tmp_path / "whole")
    whole.train_slice(1000.0)
    model_of(tmp_path / "torn").train_slice(1e-9)
    (checkpoint,) = (tmp_path / "torn").rglob("*.pt")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    again = model_of(tmp_path / "torn")
    assert again.train_slice(1000.0).steps == 5
    assert torch.equal(epsilon(again), epsilon(whole))
    assert "silo-0: checkpoint" in caplog.text
    assert "damaged, training starts again" in caplog.text


def test_whole_checkpoint_is_not_called_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    model_of(tmp_path).train_slice(1e-9)
    assert model_of(tmp_path).train_slice(1e-9).steps == 2
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_damaged_model_is_named_with_what_to_do(damage: str, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.train_slice(1000.0)
    weights = model.folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage != "missing":
        weights.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=f"model '.*{model.key}' is damaged: remove the folder to train it again"):
        load_network(model.folder, CPU)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.train_slice(1000.0)
    weights = model.folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_network(model.folder, CPU).state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="is damaged"):
        load_network(model.folder, CPU)


def test_full_disk_at_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    model_of(tmp_path).train_slice(1e-9)
    before = {path: path.read_bytes() for path in files_below(tmp_path)}
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            model_of(tmp_path).train_slice(1e-9)
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == before
    assert model_of(tmp_path).train_slice(1e-9).steps == 2


def test_full_disk_at_the_end_leaves_no_half_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    model_of(tmp_path).train_slice(1e-9)
    before = files_below(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ClassConditionalDDPMPipeline, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            model_of(tmp_path).train_slice(1000.0)
    assert files_below(tmp_path) == before
    assert not model_of(tmp_path).finished
    model_of(tmp_path).train_slice(1000.0)
    assert model_of(tmp_path).finished


def test_history_is_json_that_others_can_read(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.train_slice(1000.0)
    written = json.loads((model.folder / "training.json").read_text())
    assert set(written) == {"seconds", "steps", "losses", "held-out-steps", "held-out-losses"}
    assert np.isfinite(written["losses"]).all()
    assert written["held-out-steps"] == [5]
    plain = model_of(tmp_path, early_stop=False)
    plain.train_slice(1000.0)
    assert set(plain.history()) == {"seconds", "steps", "losses"}
