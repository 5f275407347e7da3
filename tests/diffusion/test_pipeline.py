from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from fedsynth.config import RECIPES
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    build_unet,
    lasting_scheduler,
    make_scheduler,
    noise_predictor,
    sample,
    to_uint8,
)
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

PAPER = RECIPES["paper"]
CLASSES = ("zero", "one", "two")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline(tiny_unet: Callable[..., UNet2DModel]) -> ClassConditionalDDPMPipeline:
    found = ClassConditionalDDPMPipeline(tiny_unet(), lasting_scheduler(PAPER), CLASSES)
    found.set_progress_bar_config(disable=True)
    return found


def pixels(pipeline: ClassConditionalDDPMPipeline, labels: list[int | str], seed: int = 5) -> np.ndarray:
    images = pipeline(labels, generator=generator(seed), num_inference_steps=4).images
    return np.stack([np.asarray(image) for image in images])


def test_reopens_with_the_same_images(pipeline: ClassConditionalDDPMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = ClassConditionalDDPMPipeline.from_pretrained(tmp_path)
    assert (pixels(pipeline, [0, 1, 2]) == pixels(loaded, [0, 1, 2])).all()
    assert loaded.config.classes == list(CLASSES)
    assert loaded.scheduler.config.timestep_spacing == "trailing"


def test_images_are_samples_of_the_network(pipeline: ClassConditionalDDPMPipeline) -> None:
    draw = generator(5)
    noise, labels = torch.randn(4, 1, 8, 8, generator=draw), torch.tensor([2, 0, 1, 1])
    expected = sample(noise_predictor(pipeline.unet, PAPER), make_scheduler(PAPER, 4), noise, labels, draw)
    assert (pixels(pipeline, [2, 0, 1, 1]) == to_uint8(expected)[..., 0]).all()


def test_labels_by_name_and_index(pipeline: ClassConditionalDDPMPipeline) -> None:
    assert (pixels(pipeline, ["two", "zero", 1]) == pixels(pipeline, [2, 0, 1])).all()
    found = pipeline(torch.tensor([2, 0]), generator=generator(), num_inference_steps=2)
    assert found.labels.tolist() == [2, 0]
    assert (pixels(pipeline, [0]) != pixels(pipeline, [1])).any()


def test_grey_and_colour_images(pipeline: ClassConditionalDDPMPipeline) -> None:
    assert pipeline([0], generator(), 2).images[0].mode == "L"
    unet = build_unet("digits", ImageSpec(3, 8, CLASSES), generator(), (8, 8), 1)
    found = ClassConditionalDDPMPipeline(unet, lasting_scheduler(PAPER), CLASSES)([1], generator(), 2)
    assert (found.images[0].mode, found.images[0].size) == ("RGB", (8, 8))


def test_arrays_are_the_pictures(pipeline: ClassConditionalDDPMPipeline) -> None:
    arrays = pipeline([0, 2], generator(), 2, output_type="np").images
    pictures = [np.asarray(image) for image in pipeline([0, 2], generator(), 2).images]
    assert (arrays.dtype, arrays.shape) == (np.float32, (2, 8, 8, 1))
    np.testing.assert_allclose(arrays[..., 0], np.stack(pictures) / 255, atol=1e-6)
    with pytest.raises(UserError, match="output_type = 'latent': must be 'pil' or 'np'"):
        pipeline([0], output_type="latent")


def test_without_a_generator_images_differ_and_the_global_state_stays(pipeline: ClassConditionalDDPMPipeline) -> None:
    before = torch.get_rng_state()
    one, two = (np.asarray(pipeline([0], num_inference_steps=2).images[0]) for _ in range(2))
    assert (one != two).any()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("three", "label 'three': must be one of zero, one, two"),
        (3, "label 3: must be in 0 … 2"),
        (-1, "label -1: must be in 0 … 2"),
    ],
)
def test_bad_labels(label: int | str, message: str, pipeline: ClassConditionalDDPMPipeline) -> None:
    with pytest.raises(UserError, match=message):
        pipeline([0, label])
