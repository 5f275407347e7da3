"""The model that the server trains on the finished set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from tiny_runs import images_of, run_tiny, tiny_settings

import strategies.results.generator
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    TrainingState,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.output import RunFolder, read_dataset
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task
from strategies.conversation.census import Census
from strategies.results.generator import train_generator

STEPS = 5
Weights = dict[str, torch.Tensor]


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def config(**changes: Any) -> RunConfig:
    words = {"block-out-channels": "8,8", "device": "cpu", "generator-steps": STEPS, "sampling-steps": 3}
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    return RunConfig.from_run_config({**words, **given})


def task(**changes: Any) -> Task:
    """Without a federation: no real image is at hand."""
    settings = config(**changes)
    spec = load_federation(settings).spec
    return Task(settings, spec, Census.unknown([1, 2], 10), torch.arange(12) % 10)


def outcome(seed: int = 0) -> Outcome:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    return Outcome(pixels, np.arange(12) % 10)


def by_hand(todo: Task, done: Outcome) -> TrainingState:
    settings = todo.config
    goal, generator = settings.sampling.generator_steps, make_generator(0, "generator-training")
    state = TrainingState(initial_unet(settings, todo.spec), settings.recipe, generator, goal)
    images, labels = to_model_range(done.images), torch.from_numpy(done.labels)
    train(state, images, labels, settings.training, goal)
    return state


def generator_of(todo: Task, done: Outcome, folder: Path) -> strategies.results.generator.Generator:
    trained = train_generator(todo, done, folder)
    assert trained is not None
    return trained


def test_it_is_trained_on_the_released_images_as_a_silos_model_is_on_its_own(tmp_path: Path) -> None:
    trained = generator_of(task(), outcome(), tmp_path)
    assert trained.steps == STEPS
    assert same(trained.unet.state_dict(), by_hand(task(), outcome()).averaged_unet().state_dict())
    assert not same(trained.unet.state_dict(), generator_of(task(), outcome(1), tmp_path).unet.state_dict())
    assert not same(trained.unet.state_dict(), generator_of(task(seed=1), outcome(), tmp_path / "b").unet.state_dict())


def test_there_is_none_unless_asked_for(tmp_path: Path) -> None:
    assert train_generator(task(generator_steps=0), outcome(), tmp_path) is None
    assert [*tmp_path.iterdir()] == []


def test_its_images_start_from_other_noise_than_the_released_ones_and_move_without(tmp_path: Path) -> None:
    todo = task(sampler="ddim")
    trained = generator_of(todo, outcome(), tmp_path)
    labels = np.array([3, 1, 4])
    noise_of = make_generator(0, "generator-sampling")
    noise = torch.randn((3, 1, 8, 8), generator=noise_of)
    predict, scheduler = (
        noise_predictor(trained.unet, todo.config.recipe),
        make_scheduler(todo.config.recipe, 3, "dpmsolver++"),
    )
    expected = to_uint8(sample(predict, scheduler, noise, torch.tensor(labels), noise_of))
    np.testing.assert_array_equal(trained.draw(todo, labels), expected)
    released = torch.randn((3, 1, 8, 8), generator=make_generator(0, "initial-noise"))
    assert not torch.equal(noise, released)


def test_a_killed_training_goes_on_where_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generator_of(task(), outcome(), tmp_path / "whole").unet.state_dict()
    monkeypatch.setattr(strategies.results.generator, "SAVE_SECONDS", 0.0)
    save, saved = TrainingState.save, []

    def save_and_die(state: TrainingState, path: Path, owner: str) -> None:
        save(state, path, owner)
        saved.append(state.steps)
        if state.steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train_generator(task(), outcome(), tmp_path)
    assert same(generator_of(task(), outcome(), tmp_path).unet.state_dict(), whole)
    assert saved == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_more_steps_continue_a_finished_training_of_the_same_rates_and_others_start_again(
    decay: str, tmp_path: Path
) -> None:
    rates = {"learning_rate_decay": decay, "warmup_steps": 0}
    longer, shorter = task(generator_steps=7, **rates), task(generator_steps=2, **rates)
    generator_of(task(**rates), outcome(), tmp_path)
    steps: list[int] = []

    def counted(*args: Any) -> list[float]:
        losses = train(*args)
        steps.append(len(losses))
        return losses

    with mock.patch.object(strategies.results.generator, "train", counted):
        continued = generator_of(longer, outcome(), tmp_path)
    assert steps == [2 if decay == "constant" else 7]
    assert same(continued.unet.state_dict(), by_hand(longer, outcome()).averaged_unet().state_dict())
    restarted = generator_of(shorter, outcome(), tmp_path)
    assert restarted.steps == 2
    assert same(restarted.unet.state_dict(), by_hand(shorter, outcome()).averaged_unet().state_dict())


def test_a_torn_checkpoint_is_named_and_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = generator_of(task(), outcome(), tmp_path).unet.state_dict()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert same(generator_of(task(), outcome(), tmp_path).unet.state_dict(), whole)
    assert f"generator: checkpoint '{path}' is damaged, training starts again" in caplog.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a generator, measured."""
    quick = {"evaluate": True, "classifiers": "logistic-regression", "feature_extractor": "pixels"}
    folder = tmp_path_factory.mktemp("finished")
    return run_tiny(tiny_settings(folder, strategy="pooled", generator_steps=STEPS, classifier_seeds=1, **quick))


def pipeline_of(folder: RunFolder) -> ClassConditionalDDPMPipeline:
    return ClassConditionalDDPMPipeline.from_pretrained(folder.models / "generator")


def test_a_run_leaves_a_pipeline_that_draws(finished: RunFolder) -> None:
    released = read_dataset(finished.synthetic)
    expected = by_hand(task(num_samples=30), Outcome(released.images, released.labels)).averaged_unet()
    pipeline = pipeline_of(finished)
    assert same(dict(pipeline.unet.state_dict()), dict(expected.state_dict()))
    assert pipeline.scheduler.config.algorithm_type == "dpmsolver++"
    told = pipeline.scheduler.config
    assert (told.prediction_type, told.beta_schedule) == ("sample", "squaredcos_cap_v2")
    assert len(pipeline([3, "7"], num_inference_steps=2).images) == 2
    results = json.loads(finished.results.read_text())
    assert results["generator-steps"] == STEPS
    assert results["generator-seconds"] > 0
    note = f"models/generator, trained for {STEPS} steps on these images alone"
    assert note in (finished.synthetic / "README.md").read_text()
    assert note in results["notes"]


def test_a_finished_run_is_given_a_generator_later_which_changes_no_image(tmp_path: Path, finished: RunFolder) -> None:
    settings = tiny_settings(tmp_path, strategy="pooled")
    later = run_tiny(settings, report=False)
    assert not (later.models / "generator").exists()
    assert "generator-steps" not in json.loads(later.results.read_text())
    assert images_of(later) == images_of(finished)
    run_tiny({**settings, "generator-steps": STEPS, "resume": str(later.path)}, report=False)
    assert same(pipeline_of(later).unet.state_dict(), pipeline_of(finished).unet.state_dict())
    assert images_of(later) == images_of(finished)


def test_a_run_measures_what_its_generator_draws(finished: RunFolder) -> None:
    results, released = json.loads(finished.results.read_text()), read_dataset(finished.synthetic)
    settings = finished.read_config()
    federation = load_federation(settings)
    todo = Task(settings, federation.spec, Census.unknown([1, 2, 3], 10), torch.from_numpy(released.labels))
    drawn = strategies.results.generator.Generator(pipeline_of(finished).unet, STEPS, 0.0).draw(todo, released.labels)
    assert results["n"] == 30
    ratio = results["generator-frechet-distance"] / results["frechet-distance"]
    assert results["generator-frechet-ratio"] == pytest.approx(ratio)
    real, fake, fresh = (
        images.reshape(len(images), -1).astype(float) for images in (federation.test.images, released.images, drawn)
    )
    near = np.percentile(cdist(real, fake).min(1), 5)
    assert results["generator-repeated-share"] == np.mean(cdist(fresh, fake).min(1) <= near)
    for measure in ("copied-share", "epsilon-membership-auc", "accuracy-logistic-regression"):
        assert 0 <= results[f"generator-{measure}"] <= 1
    page = finished.report.read_text()
    assert ">generator<" in page
    assert "generator-frechet-ratio" in page
    assert "models/generator" in page
