"""Variants of training images: which there are, how often, and that nothing else depends on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from fedsynth.config import RECIPES, RunConfig, Training
from fedsynth.diffusion import EncodedImages, TrainingState, make_codec, train
from fedsynth.diffusion.augmentation import augmented, exact_variants
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

COUNT = 3600


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(size: int, channels: int = 2) -> np.ndarray:
    """Every place another value, (C, H, W)."""
    return np.arange(channels * size * size, dtype=np.float32).reshape(channels, size, size)


def moved(of: np.ndarray, down: int, right: int, most: int) -> np.ndarray:
    padded = np.pad(of, ((0, 0), (most, most), (most, most)), mode="edge")
    size = of.shape[1]
    return padded[:, most + down : most + down + size, most + right : most + right + size]


def variants(name: str, of: np.ndarray) -> list[np.ndarray]:
    if name == "flip":
        return [of, of[:, :, ::-1]]
    if name == "rotate90":
        return [np.rot90(of, k, (1, 2)) for k in range(4)]
    most = max(1, of.shape[1] // 16)
    steps = range(-most, most + 1)
    return [moved(of, down, right, most) for down in steps for right in steps]


@pytest.mark.parametrize(("name", "size"), [("flip", 8), ("rotate90", 8), ("shift", 8), ("shift", 16), ("shift", 32)])
def test_every_variant_is_as_likely_and_there_are_no_others(name: str, size: int) -> None:
    images = torch.from_numpy(image(size)).expand(COUNT, -1, -1, -1)
    found = Counter(one.numpy().tobytes() for one in augmented(images, [name], generator()))
    expected = {np.ascontiguousarray(one).tobytes() for one in variants(name, image(size))}
    assert found.keys() == expected
    share = COUNT / len(expected)
    assert max(abs(count - share) for count in found.values()) < 4.5 * share**0.5
    assert torch.equal(images[-1], torch.from_numpy(image(size))), "the images themselves stay"


@pytest.mark.parametrize("names", [(), ("flip",), ("rotate90",), ("flip", "rotate90"), ("rotate90", "flip", "shift")])
def test_mirrored_and_turned_images_are_all_that_are_drawn_and_no_more(names: tuple[str, ...]) -> None:
    one = image(8).astype(np.uint8)
    images = torch.from_numpy(one).expand(COUNT // 10, -1, -1, -1)
    unmoved = [name for name in names if name != "shift"]
    drawn = {form.numpy().tobytes() for form in augmented(images, unmoved, generator())}
    made = [np.moveaxis(variant(np.moveaxis(one, 0, 2)[None])[0], 2, 0) for variant in exact_variants(names)]
    found = [np.ascontiguousarray(form).tobytes() for form in (one, *made)]
    assert set(found) == drawn
    assert len(found) == len(drawn)


def test_variants_of_variants_are_drawn_in_order_and_again_from_the_same_seed() -> None:
    images = torch.from_numpy(image(8)).repeat(50, 1, 1, 1)
    names, draw = ["shift", "flip"], generator(1)
    expected = augmented(augmented(images, ["shift"], draw), ["flip"], draw)
    assert torch.equal(augmented(images, names, generator(1)), expected)
    assert not torch.equal(augmented(images, names, generator(2)), expected)


@pytest.mark.parametrize("codec", ["pixels", "unshuffle-2"])
def test_drawn_images_are_encoded_variants_of_their_pixels(codec: str) -> None:
    made = make_codec(codec, ImageSpec(3, 8, ("a",)))
    stored = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    rows = torch.tensor([4, 0, 4, 2] * 30)
    drawn = made.decode(EncodedImages(stored, made, ("rotate90",)).draw(rows, generator()))
    turns = [
        [k for k in range(4) if np.array_equal(np.rot90(stored[row], k), found)]
        for row, found in zip(rows, drawn, strict=True)
    ]
    assert all(len(turn) == 1 for turn in turns)
    assert {turn[0] for turn in turns} == {0, 1, 2, 3}


def test_without_augmentation_no_number_is_drawn() -> None:
    made, draw = make_codec("pixels", ImageSpec(1, 8, ("a",))), generator()
    encoded = EncodedImages(np.zeros((3, 8, 8, 1), np.uint8), made)
    before = draw.get_state()
    assert torch.equal(encoded.draw(torch.tensor([2, 1]), draw), encoded[torch.tensor([2, 1])])
    assert torch.equal(draw.get_state(), before)


def test_a_training_on_variants_can_be_cut_anywhere(tiny_unet: Callable[..., UNet2DModel]) -> None:
    made = make_codec("pixels", ImageSpec(1, 8, ("a", "b")))
    stored = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    losses = []
    for augment, cuts in ((("flip", "shift"), [4]), (("flip", "shift"), [1, 3, 4]), ((), [4])):
        state = TrainingState(tiny_unet(), RECIPES["default"], generator(1), 4)
        for until in cuts:
            train(state, EncodedImages(stored, made, augment), torch.arange(6) % 2, Training(batch_size=8), until)
        losses.append(state.losses)
    assert losses[0] == losses[1]
    assert all(one != other for one, other in zip(losses[0], losses[2], strict=True))


class TestKey:
    def test_names_each_variant_once(self) -> None:
        config = RunConfig.from_run_config({"augment": "flip, rotate90"})
        assert config.training.augmentations() == ("flip", "rotate90")
        assert RunConfig().training.augmentations() == ()

    @pytest.mark.parametrize("given", ["flop", "flip,flip", "flip,", ",", " ", "flip;shift"])
    def test_is_refused_with_what_there_is(self, given: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({"augment": given})
        assert str(caught.value) == f"augment = '{given}': must name each of flip, rotate90, shift at most once"
