"""``fedsynth draw``: a dataset from a saved model, and what a clumsy user gives it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torchvision.datasets import ImageFolder

from fedsynth.cli import draw, main
from fedsynth.config import Diffusion
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    build_unet,
    make_scheduler,
    noise_predictor,
    sample,
    to_uint8,
)
from fedsynth.output import SyntheticDataset, read_dataset
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("ant", "bee", "cat"))
FEW = ["--num-samples", "7", "--sampling-steps", "2"]


def pipeline(
    diffusion: Diffusion | None = None, classes: tuple[str, ...] = SPEC.classes
) -> ClassConditionalDDPMPipeline:
    unet = build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8))
    return ClassConditionalDDPMPipeline(unet, make_scheduler(diffusion or Diffusion()), classes)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model in ``model``."""
    monkeypatch.chdir(tmp_path)
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path


def drawn(*words: str, model: str = "model", output: str = "more") -> SyntheticDataset:
    assert main(["draw", model, "--output", output, "--device", "cpu", *FEW, *words]) == 0
    return read_dataset(Path(output))


def by_hand(labels: list[int], seed: int, sampler: str, diffusion: Diffusion) -> np.ndarray:
    generator = make_generator(seed, "draw", 0)
    noise = torch.randn((len(labels), 1, 8, 8), generator=generator)
    scheduler = make_scheduler(diffusion, 2, sampler)
    return to_uint8(sample(noise_predictor(pipeline().unet), scheduler, noise, torch.tensor(labels), generator))


def test_a_dataset_of_all_classes_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = drawn()
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(dataset.images, by_hand(dataset.labels.tolist(), 0, "sde-dpmsolver++", Diffusion()))
    assert dataset.classes == SPEC.classes
    assert ImageFolder("more").classes == ["ant", "bee", "cat"]
    assert capsys.readouterr().out == "dataset more\n"
    card = Path("more/README.md").read_text()
    assert "- method: drawn from a saved model" in card
    assert '"model": "model"' in card
    assert dataset.provenance["settings"]["sampler"] == "sde-dpmsolver++"
    assert dataset.provenance["seed"] == 0


def test_options_are_those_of_a_run() -> None:
    dataset = drawn("--seed", "3", "--sampler", "ddim", "--classes", "cat, ant", "--num-samples", "5")
    assert dataset.labels.tolist() == [2, 0, 2, 0, 2]
    np.testing.assert_array_equal(dataset.images, by_hand([2, 0, 2, 0, 2], 3, "ddim", Diffusion()))


@pytest.mark.parametrize(
    ("words", "used"), [([], "dpmsolver++"), (["--sampler", "auto"], "dpmsolver++"), (["--sampler", "ddpm"], "ddpm")]
)
def test_the_sampler_saved_with_a_model_is_the_default(words: list[str], used: str, folder: Path) -> None:
    model = pipeline()
    model.scheduler = make_scheduler(Diffusion(), sampler="dpmsolver++")
    model.save_pretrained(folder / "generator")
    dataset = drawn(*words, model="generator")
    np.testing.assert_array_equal(dataset.images, by_hand(dataset.labels.tolist(), 0, used, Diffusion()))
    assert dataset.provenance["settings"]["sampler"] == used


def test_the_same_seed_gives_the_same_images() -> None:
    first, again, other = drawn(), drawn(output="again"), drawn("--seed", "1", output="other")
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_many_images_are_drawn_in_blocks_of_fresh_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draw, "BLOCK", 3)
    caplog.set_level("INFO", logger="fedsynth")
    images = drawn("--classes", "bee").images
    assert len(np.unique(images.reshape(7, -1), axis=0)) == 7
    assert "image 7/7 (100 %), took" in caplog.text


@pytest.mark.parametrize("schedule", ["own", "cosine"])
def test_the_models_noise_schedule_is_used(schedule: str, folder: Path) -> None:
    other = Diffusion.model_validate({"num-train-timesteps": 500, "beta-end": 0.04})
    model = pipeline(other)
    if schedule == "cosine":
        model.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    model.save_pretrained(folder / "other")
    images = drawn("--sampler", "ddim", model="other").images
    same = by_hand([0, 1, 2, 0, 1, 2, 0], 0, "ddim", other)
    assert np.array_equal(images, same) == (schedule == "own")


def test_a_failed_drawing_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsynth.output.dataset._record", fail)
    assert main(["draw", "model", "--output", "more", *FEW]) == 130
    assert [path.name for path in folder.iterdir()] == ["model"]


def no_index(folder: Path) -> None:
    (folder / "model" / "model_index.json").unlink()


def torn_index(folder: Path) -> None:
    (folder / "model" / "model_index.json").write_text('{"classes": [')


def listed_index(folder: Path) -> None:
    (folder / "model" / "model_index.json").write_text("[1, 2]")


def no_classes(folder: Path) -> None:
    change(folder / "model" / "model_index.json", classes=[])


def unconditional(folder: Path) -> None:
    change(folder / "model" / "unet" / "config.json", num_class_embeds=None)


def two_channels(folder: Path) -> None:
    change(folder / "model" / "unet" / "config.json", in_channels=2)


def torn_weights(folder: Path) -> None:
    (path,) = (folder / "model" / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:5000])


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "model" / "scheduler")


def short_schedule(folder: Path) -> None:
    change(folder / "model" / "scheduler" / "scheduler_config.json", num_train_timesteps=50)


def existing(folder: Path) -> None:
    (folder / "more").mkdir()


def existing_file(folder: Path) -> None:
    (folder / "more").touch()


def fine(folder: Path) -> None:
    """Nothing is wrong with the files."""


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def blocked(folder: Path) -> None:
    (folder / "a-file").touch()


@pytest.mark.parametrize(
    ("prepare", "words", "said"),
    [
        (
            fine,
            ["nothing"],
            "model 'nothing': there is no such folder; give models/generator or models/global of a run",
        ),
        (blocked, ["a-file"], "model 'a-file': there is no such folder"),
        (fine, ["model/unet"], "model 'model/unet' is no diffusers pipeline, it holds no model_index.json"),
        (no_index, ["model"], "model 'model' is no diffusers pipeline, it holds no model_index.json"),
        (torn_index, ["model"], "model 'model': model_index.json is damaged ("),
        (listed_index, ["model"], "model 'model': model_index.json is damaged ("),
        (no_classes, ["model"], "model 'model' has no classes: give a class-conditional one"),
        (unconditional, ["model"], "model 'model' has no classes: give a class-conditional one"),
        (two_channels, ["model"], "model 'model' makes images of 2 channels and size 8"),
        (torn_weights, ["model"], "model-path = 'model': the network is damaged"),
        (
            no_scheduler,
            ["model"],
            "model 'model' is no diffusers pipeline, it holds no scheduler/scheduler_config.json",
        ),
        (short_schedule, ["model"], "num-train-timesteps = 50 leaves"),
        (existing, ["model"], "--output 'more' exists: give a folder that does not, or remove it"),
        (existing_file, ["model"], "--output 'more' exists"),
        (blocked, ["model", "--output", "a-file/more"], "cannot write 'a-file/more': a file stands where a folder"),
        (fine, ["model", "--classes", "dog"], "--classes: unknown class 'dog' (ant, bee, cat)"),
        (
            fine,
            ["model", "--classes", "ant,bees"],
            "--classes: unknown class 'bees': did you mean 'bee'? (ant, bee, cat)",
        ),
        (fine, ["model", "--classes", ""], "--classes: unknown class ''"),
        (fine, ["model", "--classes", "ant,ant"], "--classes 'ant,ant': name each once"),
        (fine, ["model", "--num-samples", "0"], "num-samples = 0: must be a whole number >= 1"),
        (fine, ["model", "--num-samples", "many"], "num-samples = 'many': must be a whole number"),
        (fine, ["model", "--sampling-steps", "1001"], "sampling-steps = 1001: must be <= num-train-timesteps = 1000"),
        (fine, ["model", "--sampler", "ddpn"], "unknown sampler 'ddpn': did you mean 'ddpm'?"),
        (fine, ["model", "--sampler", "ula"], "unknown sampler 'ula'"),
        (fine, ["model", "--labels", "observed"], "labels = 'observed': a model does not say how frequent"),
        (fine, ["model", "--seed", "-1"], "seed = -1: must be a whole number >= 0"),
        (fine, ["model", "--strategy", "dfd"], "unknown option '--strategy'; 'fedsynth draw --help' lists all"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    prepare: Callable[[Path], None],
    words: list[str],
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(folder)
    monkeypatch.setattr(draw, "_draw", lambda *_: pytest.fail("work was begun"))
    before = {*folder.rglob("*")}
    assert main(["draw", "--output", "more", "--device", "cpu", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {said}")
    assert {*folder.rglob("*")} == before
