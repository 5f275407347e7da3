from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from exact_networks import KINDS
from pretrained_folders import save_model, unet_of

from fedsynth.config import RECIPES, Recipe
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    Codec,
    build_unet,
    lasting_scheduler,
    make_codec,
    noise_predictor,
)
from fedsynth.diffusion.pretrained import PretrainedModel, load_pretrained_model
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

CLASSES = ("zero", "one", "two")
SPEC = ImageSpec(1, 8, CLASSES)
PAPER = RECIPES["paper"]
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
MEAN, STD = 0.6, 0.3
OTHER_SHAPES = (
    {"block_out_channels": (8, 16, 16), "layers_per_block": 2},
    {"block_out_channels": (16,), "attention": True},
    {"block_out_channels": (4, 8), "time_embedding_type": "learned", "num_train_timesteps": 400},
    {"block_out_channels": (8, 8), "resnet_time_scale_shift": "scale_shift", "sample_size": 16},
)


def save(
    folder: Path, unet: UNet2DModel, scheduler: Any = None, classes: tuple[str, ...] = CLASSES, **schedule: Any
) -> Path:
    return save_model(folder, unet, classes, scheduler, **schedule)


def load(folder: Path, held: tuple[str, ...] = CLASSES, recipe: Recipe = PAPER) -> PretrainedModel:
    return load_pretrained_model(folder, Codec(SPEC), recipe, held)


def questions(count: int = 5, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(3)), torch.arange(count) % 3


@pytest.mark.parametrize("recipe", KINDS.values(), ids=KINDS)
def test_our_own_model_answers_bit_for_bit_as_if_trained_here(recipe: Recipe, tmp_path: Path) -> None:
    unet = build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8), 1)
    ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe), CLASSES).save_pretrained(tmp_path)
    model = load(tmp_path, recipe=recipe)
    x, labels = questions(300)
    for t in (0, 421, 999):
        answer = model.predict(x, t, labels)
        assert torch.equal(answer, noise_predictor(unet, recipe)(x, t, labels))
        assert (answer.dtype, answer.device.type) == (torch.float32, "cpu")
    assert model.native


WIDE = ImageSpec(1, 16, CLASSES)


def saved_of(codec: Codec, folder: Path, recipe: Recipe) -> UNet2DModel:
    unet = build_unet("digits", codec.grid, torch.Generator().manual_seed(0), (8, 8), 1)
    ClassConditionalDDPMPipeline(unet, lasting_scheduler(recipe), CLASSES, codec.name).save_pretrained(folder)
    return unet


@pytest.mark.parametrize(
    ("own", "run"), [("pixels", "unshuffle-2"), ("unshuffle-4", "pixels"), ("unshuffle-4", "unshuffle-2")]
)
@pytest.mark.parametrize("kind", ["x0-cosine", "epsilon-linear"])
def test_a_model_of_another_codec_answers_what_it_says_of_its_own(
    own: str, run: str, kind: str, tmp_path: Path
) -> None:
    own_codec, run_codec, recipe = make_codec(own, WIDE), make_codec(run, WIDE), KINDS[kind]
    unet = saved_of(own_codec, tmp_path, recipe)
    model = load_pretrained_model(tmp_path, run_codec, recipe, CLASSES)
    pixels, labels = questions(7, (1, 16, 16))
    for t in (0, 421, 990):
        asked = noise_predictor(unet, recipe)(own_codec.from_pixels(pixels), t, labels)
        answer = model.predict(run_codec.from_pixels(pixels), t, labels)
        assert torch.equal(run_codec.to_pixels(answer), own_codec.to_pixels(asked))
        assert answer.shape == (7, *run_codec.shape)
    assert not model.native
    assert load_pretrained_model(tmp_path, own_codec, recipe, CLASSES).native


def test_a_model_s_codec_must_fit_the_images(tmp_path: Path) -> None:
    saved_of(make_codec("unshuffle-4", WIDE), tmp_path, PAPER)
    for spec, known in ((ImageSpec(1, 18, CLASSES), "pixels, unshuffle-2"), (ImageSpec(1, 15, CLASSES), "pixels")):
        with pytest.raises(UserError) as caught:
            load_pretrained_model(tmp_path, Codec(spec), PAPER, CLASSES)
        assert str(caught.value) == (
            f"model-path = '{tmp_path}': its codec is 'unshuffle-4', and images of size {spec.size} can be seen"
            f" through {known}: give a model of such images, or remove model-path to train one here"
        )
    index = tmp_path / "model_index.json"
    (tmp_path / "model.checksums.json").unlink(missing_ok=True)
    for damaged in (5, ["pixels"], {}, None, "pixels "):
        index.write_text(json.dumps({**json.loads(index.read_text()), "codec": damaged}))
        with pytest.raises(UserError, match="its codec is "):
            load_pretrained_model(tmp_path, Codec(WIDE), PAPER, CLASSES)


def cosine(timestep: float, steps: int) -> float:
    """ᾱ of the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 17) at any real timestep."""

    def level(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    return level((timestep + 1) / steps) / level(0)


def test_gaussian_under_a_cosine_schedule_is_exact_at_our_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, x: torch.Tensor, t: Any, class_labels: torch.Tensor) -> SimpleNamespace:
        alpha_bar = cosine(float(t), 400)
        eps = exact_eps(x, alpha_bar)
        clean = (x - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)
        return SimpleNamespace(sample=math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * clean)

    schedule = {"num_train_timesteps": 400, "beta_schedule": "squaredcos_cap_v2"}
    folder = save(tmp_path, unet_of(), **schedule, prediction_type="v_prediction")
    monkeypatch.setattr(UNet2DModel, "forward", forward)
    model, errors = load(folder), []
    for t in range(0, 1000, 9):
        noise, labels = questions(64)
        clean = MEAN + STD * noise.flip(0).double()
        x = math.sqrt(ALPHAS[t]) * clean + math.sqrt(1 - ALPHAS[t]) * noise
        errors.append((t, float((model.predict(x, t, labels) - exact_eps(x, ALPHAS[t])).abs().max())))
    assert max(error for t, error in errors if 60 <= t < 900) < 1e-4
    # Near its ends the schedule bends between two of its levels.
    assert max(error for t, error in errors if t > 0) < 0.002


def exact_eps(x: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    return (x - math.sqrt(alpha_bar) * MEAN) * math.sqrt(1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)


@pytest.mark.parametrize("shape", OTHER_SHAPES, ids=lambda shape: str(shape["block_out_channels"]))
def test_any_shape_answers(shape: dict[str, Any], tmp_path: Path) -> None:
    classes = None if shape.get("attention") else 3
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
    steps = shape.get("num_train_timesteps", 1000)
    folder = save(tmp_path, unet_of(classes=classes, **shape), **schedule, num_train_timesteps=steps)
    model = load(folder, CLASSES if classes else ("one",))
    x, labels = questions()
    labels = labels if classes else torch.ones_like(labels)
    for t in (0, 500, 999):
        answer = model.predict(x, t, labels)
        assert answer.shape == x.shape
        assert answer.isfinite().all()


def test_scheduler_of_another_sampler_tells_the_same_schedule(tmp_path: Path) -> None:
    unet = unet_of()
    models = [
        load(save(tmp_path / type(scheduler).__name__, unet, scheduler))
        for scheduler in (DDPMScheduler(), DDIMScheduler())
    ]
    x, labels = questions()
    assert torch.equal(*(model.predict(x, 700, labels) for model in models))


def test_half_precision_weights_answer_in_single_precision(tmp_path: Path) -> None:
    model = load(save(tmp_path, unet_of().half()))
    assert model.unet.dtype == torch.float32
    assert model.predict(*questions()[:1], 5, questions()[1]).dtype == torch.float32


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    # A fifth class has no name.
    unet = unet_of(classes=5)
    model = load(save(tmp_path, unet, classes=("two", "moon", "zero", "one")))
    x, labels = questions()
    assert torch.equal(model.predict(x, 9, labels), noise_predictor(unet, PAPER)(x, 9, torch.tensor([2, 3, 0])[labels]))
    assert model.serves.tolist() == [True, True, True]
    assert not model.native


def test_class_names_of_our_pipeline_are_enough_and_a_file_overrides_them(tmp_path: Path) -> None:
    unet = unet_of()
    names = ("two", "zero", "one")
    ClassConditionalDDPMPipeline(unet, lasting_scheduler(PAPER), names).save_pretrained(tmp_path)
    x, labels = questions()
    assert torch.equal(
        load(tmp_path).predict(x, 9, labels), noise_predictor(unet, PAPER)(x, 9, torch.tensor([1, 2, 0])[labels])
    )
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    assert torch.equal(load(tmp_path).predict(x, 9, labels), noise_predictor(unet, PAPER)(x, 9, labels))


def test_unknown_class_is_not_served_and_not_answered(tmp_path: Path) -> None:
    model = load(save(tmp_path, unet_of(), classes=("two", "moon", "zero")))
    assert model.serves.tolist() == [True, False, True]
    x, _ = questions()
    assert model.predict(x, 9, torch.tensor([0, 2, 2, 0, 0])).isfinite().all()
    with pytest.raises(UserError, match=re.escape("class 'one', which the model in model-path does not know")):
        model.predict(x, 9, torch.tensor([0, 2, 1, 0, 0]))


def test_model_without_classes_is_that_of_the_silo_s_only_class(tmp_path: Path) -> None:
    unet = unet_of(classes=None)
    model = load(save(tmp_path, unet), held=("one",))
    assert model.serves.tolist() == [False, True, False]
    x, _ = questions()
    with torch.inference_mode():
        assert torch.equal(model.predict(x, 44, torch.ones(5, dtype=torch.long)), unet.eval()(x, 44).sample)
    assert not model.native


@pytest.mark.parametrize("scheduler_in", ["net", "net/scheduler", "scheduler"])
def test_bare_network_with_a_scheduler_in_or_beside_it(scheduler_in: str, tmp_path: Path) -> None:
    unet = unet_of()
    unet.save_pretrained(tmp_path / "net")
    DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / scheduler_in)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    assert load(tmp_path / "net").prediction_type == "sample"
