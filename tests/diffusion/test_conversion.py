"""Networks that predict the noise, the image or v, of exact knowledge of the data: the same noise, the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from exact_networks import KINDS, MEAN, STD, ExactNetwork, alphas_of, as_predicted, exact_eps

from fedsynth.config import Recipe
from fedsynth.diffusion import (
    SAMPLERS,
    ClassConditionalDDPMPipeline,
    Codec,
    build_unet,
    lasting_scheduler,
    make_codec,
    make_scheduler,
    noise_predictor,
    sample,
)
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.diffusion.recipe import BETA_SCHEDULES, DIFFUSERS_PREDICTION
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.spec import ImageSpec

CLASSES = ("zero", "one")
SPEC = ImageSpec(1, 8, CLASSES)
LEVELS = {"ddpm": 250, "ddim": 250, "dpmsolver++": 30, "sde-dpmsolver++": 30}
TOLERANCE = {"ddpm": 0.015, "ddim": 0.01, "dpmsolver++": 0.01, "sde-dpmsolver++": 0.03}
"""What so many levels are off by in the spread."""

for_every_kind = pytest.mark.parametrize("recipe", KINDS.values(), ids=KINDS)
for_every_schedule = pytest.mark.parametrize("schedule", sorted({recipe.schedule for recipe in KINDS.values()}))
for_every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def questions(alpha_bar: float, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples at a noise level, and labels."""
    clean, noise = torch.randn(2, count, 1, 8, 8, generator=generator())
    return alpha_bar**0.5 * (MEAN + STD * clean) + (1 - alpha_bar) ** 0.5 * noise, torch.arange(count) % 2


def predictor(recipe: Recipe) -> PredictNoise:
    # These clean samples have no bound.
    return noise_predictor(ExactNetwork(recipe), recipe, torch.inf)  # type: ignore[arg-type]


def kinds_of(schedule: str) -> list[Recipe]:
    return [recipe for recipe in KINDS.values() if recipe.schedule == schedule]


@pytest.fixture
def exact_unets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has every U-Net of diffusers answer as the exact network of a recipe, saved and loaded ones too."""

    def of(recipe: Recipe) -> UNet2DModel:
        network = ExactNetwork(recipe)
        monkeypatch.setattr(UNet2DModel, "forward", lambda self, x, t, class_labels: network(x, t))
        return build_unet("digits", SPEC, generator(), (8, 8), 1)

    return of


@for_every_kind
@pytest.mark.parametrize("t", [0, 1, 40, 500, 990, 999])
def test_every_prediction_becomes_the_same_noise(recipe: Recipe, t: int) -> None:
    alpha_bar = float(alphas_of(recipe.schedule)[t])
    x, labels = questions(alpha_bar)
    found = predictor(recipe)(x, t, labels)
    expected = exact_eps(x.double(), alpha_bar)
    # At the cleanest level single precision knows 1-ᾱ to 0.15 % only, and x_0 is divided by its root.
    torch.testing.assert_close(found.double(), expected, rtol=2e-3 if t < 2 else 1e-5, atol=2e-4 if t < 40 else 1e-5)


@for_every_schedule
@for_every_sampler
def test_every_prediction_gives_the_same_samples(schedule: str, sampler: str) -> None:
    noise, labels = torch.randn(100, 1, 8, 8, generator=generator()), torch.zeros(100, dtype=torch.long)
    found = []
    for recipe in kinds_of(schedule):
        scheduler = make_scheduler(recipe, LEVELS[sampler], sampler)
        found.append(sample(predictor(recipe), scheduler, noise, labels, generator(1)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-3)
    assert float(found[0].mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(found[0].std()) == pytest.approx(STD, abs=TOLERANCE[sampler])


@for_every_kind
@for_every_sampler
def test_diffusers_samples_right_from_what_is_saved_beside_a_network(
    recipe: Recipe, sampler: str, exact_unets: Any, tmp_path: Path
) -> None:
    unet = exact_unets(recipe)
    ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe, sampler), CLASSES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == DIFFUSERS_PREDICTION[recipe.prediction]
    assert config["beta_schedule"] == BETA_SCHEDULES[recipe.schedule]
    kind = "DDPMScheduler" if sampler == "ddpm" else "DPMSolverMultistepScheduler"
    assert config["_class_name"] == kind
    scheduler = getattr(diffusers, kind).from_pretrained(tmp_path / "scheduler")
    network = UNet2DModel.from_pretrained(tmp_path / "unet")
    noise = torch.randn(100, 1, 8, 8, generator=generator())
    x, draw = noise, generator(1)
    scheduler.set_timesteps(LEVELS[sampler])
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, class_labels=None).sample, t, x, generator=draw).prev_sample
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, abs=TOLERANCE[sampler])
    if recipe.schedule == "linear":
        labels = torch.zeros(100, dtype=torch.long)
        ours = sample(predictor(recipe), make_scheduler(recipe, LEVELS[sampler], sampler), noise, labels, generator(1))
        # diffusers works with the solvers' levels between two timesteps, at which it asks at one of the two.
        torch.testing.assert_close(x, ours, rtol=0, atol=0.02 if "++" in sampler else 1e-3)


@for_every_kind
def test_the_reopened_pipeline_draws_the_data(recipe: Recipe, exact_unets: Any, tmp_path: Path) -> None:
    unet, scheduler = exact_unets(recipe), lasting_scheduler(recipe, "sde-dpmsolver++")
    ClassConditionalDDPMPipeline(unet, scheduler, CLASSES).save_pretrained(tmp_path)
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(tmp_path)
    images = pipeline([0, 1] * 40, generator(), 30).images
    values = np.stack([np.asarray(image) for image in images]) / 127.5 - 1
    assert values.mean() == pytest.approx(MEAN, abs=0.01)
    assert values.std() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("codec", [make_codec(name, ImageSpec(3, 16, CLASSES)) for name in ("pixels", "unshuffle-2")])
def test_the_reopened_pipeline_unfolds_its_images(codec: Codec, tmp_path: Path) -> None:
    recipe = KINDS["x0-cosine"]
    unet = build_unet("digits", codec.grid, generator(), (8, 8), 1)
    saved = ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe), CLASSES, codec.name)
    saved.save_pretrained(tmp_path)
    images = ClassConditionalDDPMPipeline.from_pretrained(tmp_path)([0, 1, 1], generator(3), 4).images
    scheduler, draw, labels = lasting_scheduler(recipe), generator(3), torch.tensor([0, 1, 1])
    x = torch.randn(3, *codec.shape, generator=draw)
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, generator=draw).prev_sample
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), codec.decode(x))
    assert images[0].size == (16, 16)


@for_every_kind
@for_every_schedule
def test_a_brought_model_of_any_kind_is_exact_in_a_run_of_any_schedule(
    schedule: str, recipe: Recipe, exact_unets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = exact_unets(recipe)
    ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe), CLASSES).save_pretrained(tmp_path)
    network = ExactNetwork(recipe)
    logs = np.log(network.alphas / (1 - network.alphas))

    def between_its_levels(self: Any, x: torch.Tensor, t: Any, class_labels: Any) -> Any:
        # Fractional timesteps lie on a straight line between two log ratios.
        ratio = np.exp(np.interp(float(t), np.arange(1000), logs))
        network.alphas[0], kept = ratio / (1 + ratio), network.alphas[0]
        try:
            return network(x, 0)
        finally:
            network.alphas[0] = kept

    monkeypatch.setattr(UNet2DModel, "forward", between_its_levels)
    run = KINDS[f"epsilon-{schedule}"]
    model = load_pretrained_model(tmp_path, Codec(SPEC), run, CLASSES)
    assert model.native == (recipe == run)
    for t in (5, 40, 300, 700, 900):
        alpha_bar = float(alphas_of(schedule)[t])
        x, labels = questions(alpha_bar)
        exact = x.double()
        expected = exact_eps(exact, alpha_bar)
        if recipe.prediction == "x0":
            # The rare images beyond the range of pixels are taken to be at its end.
            clean = as_predicted(expected, exact, alpha_bar, "x0").clamp(-1, 1)
            expected = (exact - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
        torch.testing.assert_close(model.predict(x, t, labels).double(), expected, rtol=1e-3, atol=1e-3)
