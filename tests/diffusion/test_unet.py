from __future__ import annotations

import pytest
import torch

from fedsynth.diffusion import PRESETS, build_unet
from fedsynth.diffusion.unet import grid_preset, paper_preset
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

TEN = tuple(str(digit) for digit in range(10))
DIGITS = ImageSpec(1, 8, TEN)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_predicts_noise_of_the_images_shape_that_depends_on_the_label(preset: str) -> None:
    levels = len(PRESETS[preset].block_out_channels)
    unet = build_unet(preset, ImageSpec(3, 16, TEN[:3]), generator(), (4,) * levels, 1)
    x = torch.randn(2, 3, 16, 16, generator=generator(1))
    with torch.inference_mode():
        eps, other = (unet(x, 500, class_labels=torch.tensor(labels)).sample for labels in ([0, 2], [1, 2]))
    assert eps.shape == x.shape
    assert eps.isfinite().all()
    assert float((eps[0] - other[0]).abs().max()) > 1e-3
    torch.testing.assert_close(eps[1], other[1])


@pytest.mark.parametrize("channels", [(4, 4), (32, 64, 64), (12, 20), (256, 512)])
def test_no_normalisation_group_is_so_small_that_embeddings_vanish(channels: tuple[int, ...]) -> None:
    unet = build_unet("digits", DIGITS, generator(), channels, 1)
    groups = unet.config.norm_num_groups
    assert groups <= 32
    assert all(width % groups == 0 and width // groups >= 4 for width in channels)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_unet("digits", DIGITS, generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = build_unet("digits", DIGITS, generator())
    assert torch.equal(one.conv_in.weight, two.conv_in.weight)


def test_preset_can_be_changed() -> None:
    unet = build_unet("mnist", ImageSpec(3, 12, TEN), generator(), (12, 20), 3)
    assert unet.config.block_out_channels == (12, 20)
    assert unet.config.layers_per_block == 3
    assert unet.config.num_class_embeds == 10
    assert unet.config.norm_num_groups == 1


def test_images_too_small_for_the_levels() -> None:
    with pytest.raises(
        UserError, match="image-size: the network sees 28x28 places, which must be a multiple of 8 for a U-Net of 4"
    ):
        build_unet("mnist", ImageSpec(1, 28, TEN), generator())
    with pytest.raises(
        UserError, match="image-size: the network sees 2x2 places, which must be a multiple of 4 for a U-Net of 3"
    ):
        build_unet("digits", ImageSpec(1, 2, TEN), generator(), (8, 8, 8))


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match="unknown model 'cifar': did you mean 'cifar10'"):
        build_unet("cifar", DIGITS, generator())


def test_preset_of_a_dataset() -> None:
    assert all(paper_preset(name) == name for name in ("digits", "mnist", "cifar10", "celeba"))
    assert (paper_preset("fashion-mnist"), paper_preset("imagefolder")) == ("mnist", "small")


@pytest.mark.parametrize(("channels", "preset"), [(1, "digits"), (3, "digits"), (4, "digits"), (12, "grid")])
def test_preset_of_a_grid(channels: int, preset: str) -> None:
    assert grid_preset(ImageSpec(channels, 8, TEN)) == preset
