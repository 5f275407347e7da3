"""What networks see: a permutation of the pixels, and nothing that depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_networks import PAPER
from scipy.stats import kstest

from fedsynth.config import RunConfig
from fedsynth.diffusion import EncodedImages, codec_of, make_codec, make_scheduler, to_model_range
from fedsynth.diffusion.codec import NAMES, Codec, saved_codec
from fedsynth.errors import UserError
from fedsynth.mixture import PathPosterior, compose, energy
from fedsynth.spec import ImageSpec

FOLDS = [name for name in NAMES if name != "pixels"]
CLASSES = ("a", "b")


def spec_of(size: int, channels: int = 3) -> ImageSpec:
    return ImageSpec(channels, size, CLASSES)


def images(count: int = 3, size: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_place_of_an_image_is_seen_once(name: str, channels: int) -> None:
    codec = make_codec(name, spec_of(16, channels))
    places = torch.arange(channels * 16 * 16.0).reshape(1, channels, 16, 16)
    seen = codec.from_pixels(places)
    assert seen.shape == (1, *codec.shape)
    assert codec.shape == (channels * codec.factor**2, 16 // codec.factor, 16 // codec.factor)
    assert seen.flatten().sort().values.tolist() == places.flatten().tolist()
    assert torch.equal(codec.to_pixels(seen), places)
    # One place of the grid is one block of the image, in all its colours.
    block = seen[0, :, 1, 0].sort().values
    side = codec.factor
    expected = places[0, :, side : 2 * side, :side].flatten().sort().values
    assert torch.equal(block, expected)


@pytest.mark.parametrize(("size", "usual", "summed"), [(8, 1, 4), (16, 2, 4), (28, 2, 2), (32, 4, 4), (64, 8, 8)])
def test_without_a_choice_images_are_folded_and_further_where_every_step_is_noisy(
    size: int, usual: int, summed: int
) -> None:
    for settings, factor in (({}, usual), ({"strategy": "dp-sum", "dp-epsilon": 10.0}, summed)):
        assert codec_of(RunConfig.from_run_config(settings), spec_of(size)).factor == factor


@pytest.mark.parametrize("name", NAMES)
def test_stored_images_come_back_bit_for_bit(name: str) -> None:
    codec, every = make_codec(name, spec_of(16, 1)), np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for stored in (every, images(channels=1)):
        seen = codec.encode(stored)
        np.testing.assert_array_equal(codec.decode(seen), stored)
        assert torch.equal(codec.to_pixels(seen), to_model_range(stored))
        assert float(seen.abs().max()) <= codec.bound
    assert float(codec.encode(every).max()) == codec.bound


def test_samples_outside_the_range_are_clipped() -> None:
    codec = make_codec("unshuffle-2", spec_of(4, 1))
    assert set(codec.decode(torch.full((1, 4, 2, 2), 7.0)).ravel()) == {255}


@pytest.mark.parametrize("name", NAMES)
def test_images_are_converted_row_by_row(name: str) -> None:
    codec, stored = make_codec(name, spec_of(16)), images(5)
    encoded, rows = EncodedImages(stored, codec), torch.tensor([4, 0, 4])
    assert len(encoded) == 5
    assert torch.equal(encoded[rows], codec.encode(stored)[rows])


@pytest.mark.parametrize("name", FOLDS)
def test_noise_stays_independent_and_normal(name: str) -> None:
    codec = make_codec(name, spec_of(16))
    seen = codec.from_pixels(torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert kstest(seen.flatten().numpy(), "norm").pvalue > 0.01
    covariance = torch.cov(seen.flatten(1)[:, :256].T.double()).numpy()
    # 400 draws: a correlation of independent numbers is 0 ± 0.05.
    assert np.abs(covariance - np.eye(256)).max() < 0.05 * 6.5


@pytest.mark.parametrize("name", FOLDS)
def test_a_mixture_of_what_networks_see_is_that_of_pixels(name: str) -> None:
    codec, generator = make_codec(name, spec_of(16)), torch.Generator().manual_seed(0)
    x, moved, *_ = torch.randn(2, 4, 3, 16, 16, generator=generator)
    eps = x + 0.05 * torch.randn(3, 4, 3, 16, 16, generator=generator)
    prior = torch.tensor([0.5, 0.3, 0.2]).double().log()
    weights = torch.softmax(torch.randn(3, 4, generator=generator), 0)

    def seen(values: torch.Tensor) -> torch.Tensor:
        return codec.from_pixels(values.flatten(0, -4)).reshape(*values.shape[:-3], *codec.shape)

    assert torch.equal(compose(seen(eps), weights), seen(compose(eps, weights)))
    torch.testing.assert_close(energy(seen(eps)), energy(eps), rtol=1e-6, atol=0)
    scheduler = make_scheduler(PAPER, 10)
    found = [PathPosterior(prior) for _ in range(2)]
    for posterior, parts in zip(found, ((x, moved, eps), (seen(x), seen(moved), seen(eps))), strict=True):
        posterior.update(*parts, scheduler, int(scheduler.timesteps[3]))
    torch.testing.assert_close(found[1].weights, found[0].weights, rtol=1e-9, atol=1e-12)
    assert 1e-3 < float(found[0].weights.max(0).values.min()) < 1 - 1e-9


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("sampler", ["ddpm", "sde-dpmsolver++"])
def test_a_move_of_what_networks_see_is_that_of_pixels(name: str, sampler: str) -> None:
    codec, generator = make_codec(name, spec_of(16)), torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 4, 3, 16, 16, generator=generator)
    ends = []
    for sees in (lambda values: values, codec.from_pixels):
        scheduler = make_scheduler(PAPER, 10, sampler)
        # The last move has no noise of its own, which would fall on other places.
        scheduler.set_timesteps(timesteps=[100])
        ends.append(scheduler.step(sees(eps), 100, sees(x), generator=torch.Generator().manual_seed(1)).prev_sample)
    torch.testing.assert_close(ends[1], codec.from_pixels(ends[0]), rtol=0, atol=1e-6)


AUTO_GRIDS = {8: 8, 12: 12, 16: 8, 20: 10, 24: 12, 28: 14, 32: 8, 48: 12, 64: 8, 96: 12, 128: 16}


@pytest.mark.parametrize(("size", "side"), AUTO_GRIDS.items())
def test_auto_folds_to_the_smallest_grid_that_a_network_can_halve(size: int, side: int) -> None:
    codec = make_codec("auto", spec_of(size))
    assert codec.grid == ImageSpec(3 * (size // side) ** 2, side, CLASSES)
    assert codec == make_codec(codec.name, spec_of(size))
    assert codec == saved_codec(codec.saved, codec.grid)
    assert codec == codec_of(RunConfig(), spec_of(size))
    assert codec_of(RunConfig.from_run_config({"recipe": "paper"}), spec_of(size)).name == "pixels"


@pytest.mark.parametrize("size", [6, 10, 14, 15, 27])
def test_auto_leaves_images_whole_that_cannot_be_folded(size: int) -> None:
    assert make_codec("auto", spec_of(size)) == Codec(spec_of(size))


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("unshuffle-8", 28, "'pixels', 'unshuffle-2' or 'unshuffle-4'"),
        ("unshuffle-2", 15, "'pixels'"),
        ("unshuffle-4", 6, "'pixels' or 'unshuffle-2'"),
    ],
)
def test_sizes_that_are_no_multiple_are_refused(name: str, size: int, fits: str) -> None:
    with pytest.raises(UserError) as caught:
        codec_of(RunConfig.from_run_config({"codec": name}), spec_of(size))
    assert str(caught.value) == (
        f"codec = '{name}': image-size = {size} is no multiple of {name[-1]}: set codec = {fits}, or another image-size"
    )


def test_saved_models_of_other_codecs_are_refused() -> None:
    with pytest.raises(UserError, match="codec = 'wavelet' of the saved model: this version of fedsynth knows pixels,"):
        saved_codec({"codec": "wavelet"}, spec_of(8))
    with pytest.raises(UserError, match="codec = 'unshuffle-2' of the saved model: does not make 3 channels"):
        saved_codec({"codec": "unshuffle-2"}, spec_of(8))
