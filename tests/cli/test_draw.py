"""``fedsynth draw``: a dataset from a saved model, and what a clumsy user gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torchvision.datasets import ImageFolder

from fedsynth.cli import drawing, main
from fedsynth.config import RECIPES, Recipe
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    Codec,
    build_unet,
    lasting_scheduler,
    make_codec,
    make_scheduler,
    noise_predictor,
    sample,
    to_uint8,
)
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.output import SyntheticDataset, read_dataset
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("ant", "bee", "cat"))
DEFAULT = RECIPES["default"]
FEW = ["--num-samples", "7", "--sampling-steps", "2"]


def pipeline(recipe: Recipe = DEFAULT) -> ClassConditionalDDPMPipeline:
    unet = build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8))
    return ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe), SPEC.classes)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model in ``model``."""
    monkeypatch.chdir(tmp_path)
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path


def drawn(*words: str, model: str = "model", output: str = "more") -> SyntheticDataset:
    assert main(["draw", model, "--output", output, "--device", "cpu", *FEW, *words]) == 0
    return read_dataset(Path(output))


def by_hand(
    labels: list[int], seed: int, sampler: str, recipe: Recipe = DEFAULT, predict: PredictNoise | None = None
) -> np.ndarray:
    generator = make_generator(seed, "draw", 0)
    noise = torch.randn((len(labels), 1, 8, 8), generator=generator)
    scheduler = make_scheduler(recipe, 2, sampler)
    predict = predict or noise_predictor(pipeline().unet, recipe)
    return to_uint8(sample(predict, scheduler, noise, torch.tensor(labels), generator))


def test_a_dataset_of_all_classes_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = drawn()
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(dataset.images, by_hand(dataset.labels.tolist(), 0, "sde-dpmsolver++"))
    assert dataset.classes == SPEC.classes
    assert ImageFolder("more").classes == ["ant", "bee", "cat"]
    assert capsys.readouterr().out == "dataset more\n"
    card = Path("more/README.md").read_text()
    assert "- method: drawn from a saved model" in card
    assert '"model": "model"' in card
    assert dataset.provenance["settings"]["sampler"] == "sde-dpmsolver++"
    assert dataset.provenance["seed"] == 0


def test_the_card_names_the_model_without_the_folders_of_this_machine(folder: Path) -> None:
    assert drawn(model=str(folder / "model")).provenance["settings"]["model"] == "model"
    (folder / "runs" / "first" / "models").mkdir(parents=True)
    kept = (folder / "model").rename(folder / "runs" / "first" / "models" / "global")
    again = drawn(model=str(kept), output="again")
    assert again.provenance["settings"]["model"] == "first/models/global"
    assert str(folder) not in Path("again/README.md").read_text()


def test_options_are_those_of_a_run() -> None:
    dataset = drawn("--seed", "3", "--sampler", "ddim", "--classes", "cat, ant", "--num-samples", "5")
    assert dataset.labels.tolist() == [2, 0, 2, 0, 2]
    np.testing.assert_array_equal(dataset.images, by_hand([2, 0, 2, 0, 2], 3, "ddim"))


@pytest.mark.parametrize(("words", "used"), [(["--sampler", "auto"], "dpmsolver++"), (["--sampler", "ddpm"], "ddpm")])
def test_the_sampler_saved_with_a_model_is_the_default(words: list[str], used: str, folder: Path) -> None:
    model = pipeline()
    model.scheduler = lasting_scheduler(DEFAULT, "dpmsolver++")
    model.save_pretrained(folder / "generator")
    dataset = drawn(*words, model="generator")
    np.testing.assert_array_equal(dataset.images, by_hand(dataset.labels.tolist(), 0, used))
    assert dataset.provenance["settings"]["sampler"] == used


def test_many_images_are_drawn_in_blocks_of_fresh_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drawing, "BLOCK", 3)
    caplog.set_level("INFO", logger="fedsynth")
    images = drawn("--classes", "bee").images
    assert len(np.unique(images.reshape(7, -1), axis=0)) == 7
    assert "image 7/7 (100 %), took" in caplog.text


SHORT = {"num-train-timesteps": 500, "beta-end": 0.04}


@pytest.mark.parametrize(
    "recipe",
    [RECIPES["paper"], Recipe.model_validate({"schedule": "linear", "prediction": "v", **SHORT}), DEFAULT],
    ids=lambda recipe: f"{recipe.prediction}-{recipe.schedule}-{recipe.num_train_timesteps}",
)
def test_the_models_noise_schedule_and_prediction_are_used(recipe: Recipe, folder: Path) -> None:
    pipeline(recipe).save_pretrained(folder / "other")
    images = drawn("--sampler", "ddim", model="other").images
    np.testing.assert_array_equal(images, by_hand([0, 1, 2, 0, 1, 2, 0], 0, "ddim", recipe))


def test_a_model_of_another_schedule_is_asked_along_that_of_the_default_recipe(folder: Path) -> None:
    model = pipeline()
    model.scheduler = DDPMScheduler(beta_schedule="sigmoid")
    model.save_pretrained(folder / "other")
    images = drawn("--sampler", "ddim", model="other").images
    asked = load_pretrained_model(folder / "other", Codec(SPEC), DEFAULT, SPEC.classes)
    np.testing.assert_array_equal(images, by_hand([0, 1, 2, 0, 1, 2, 0], 0, "ddim", predict=asked.predict))


def test_images_are_unfolded_as_the_model_s_codec_says(folder: Path) -> None:
    codec = make_codec("unshuffle-4", ImageSpec(3, 16, SPEC.classes))
    unet = build_unet("digits", codec.grid, torch.Generator().manual_seed(0), (8, 8))
    saved = ClassConditionalDDPMPipeline(unet, lasting_scheduler(DEFAULT), SPEC.classes, codec.name)
    saved.save_pretrained(folder / "folded")
    images, generator = drawn(model="folded").images, make_generator(0, "draw", 0)
    noise, labels = torch.randn((7, 48, 4, 4), generator=generator), torch.arange(7) % 3
    scheduler = make_scheduler(DEFAULT, 2, "sde-dpmsolver++")
    expected = sample(noise_predictor(unet, DEFAULT), scheduler, noise, labels, generator)
    np.testing.assert_array_equal(images, codec.decode(expected))
    assert images.shape == (7, 16, 16, 3)


def test_a_failed_drawing_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsynth.output.dataset.dataset_card", fail)
    assert main(["draw", "model", "--output", "more", *FEW]) == 130
    assert [path.name for path in folder.iterdir()] == ["model"]


def change(name: str, **values: object) -> None:
    path = Path("model", name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(name: str, length: int) -> None:
    path = Path("model", name)
    path.write_bytes(path.read_bytes()[:length])


WEIGHTS, SCHEDULER = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda: cut("model_index.json", 20), "model 'model': model_index.json is damaged ("),
        (lambda: Path("model/model_index.json").write_text("[1, 2]"), "model 'model': model_index.json is damaged ("),
        (lambda: change("model_index.json", classes=[]), "model 'model' has no classes: give a class-conditional one"),
        (lambda: change("unet/config.json", num_class_embeds=None), "model 'model' has no classes: give a class-"),
        (lambda: change("model_index.json", codec="wavelet"), "codec = 'wavelet' of the saved model: this version"),
        (lambda: change("model_index.json", codec="unshuffle-2"), "codec = 'unshuffle-2' of the saved model: does not"),
        (lambda: change("model_index.json", codec=[1]), "codec = '[1]' of the saved model: this version of fedsynth"),
        (lambda: change("unet/config.json", sample_size=[8, 8]), "model 'model': its unet/config.json names no chann"),
        (lambda: change("unet/config.json", in_channels=2), "model 'model' makes images of 2 channels: 1 or 3"),
        (lambda: cut(WEIGHTS, 5000), "model-path = 'model': the network is damaged"),
        (lambda: change(SCHEDULER, beta_schedule="linear", num_train_timesteps=50), "num-train-timesteps = 50 leaves"),
        (lambda: Path("model", SCHEDULER).unlink(), f"model 'model' is no diffusers pipeline, it holds no {SCHEDULER}"),
    ],
)
def test_damaged_models_are_refused(damage: Callable[[], None], said: str, refused: Callable[..., str]) -> None:
    damage()
    assert refused("draw", "model", "--output", "more").startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing", "model 'nothing': there is no such folder; give models/generator or models/global of a run"),
        ("model/unet", "model 'model/unet' is no diffusers pipeline, it holds no model_index.json"),
        ("model --output model", "--output 'model' exists: give a folder that does not, or remove it"),
        ("model --output file", "--output 'file' exists"),
        ("model --output file/more", "cannot write 'file/more': a file stands where a folder"),
        ("model --classes ant,bees", "--classes: unknown class 'bees': did you mean 'bee'? (ant, bee, cat)"),
        ("model --classes=", "--classes: unknown class ''"),
        ("model --classes ant,ant", "--classes 'ant,ant': name each once"),
        ("model --num-samples 0", "num-samples = 0: must be a whole number >= 1"),
        ("model --sampling-steps 1001", "sampling-steps = 1001: must be <= num-train-timesteps = 1000"),
        ("model --sampler ula", "unknown sampler 'ula'"),
        ("model --labels observed", "labels = 'observed': a model does not say how frequent"),
        ("model --strategy dfd", "unknown option '--strategy'; 'fedsynth draw --help' lists all"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    words: str, said: str, folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(drawing, "_draw", lambda *_: pytest.fail("work was begun"))
    assert refused("draw", "--output", "more", "--device", "cpu", *words.split()).startswith(f"error: {said}")
