from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel

from fedsynth.diffusion import PARTS, PRESETS, build_unet, part_of, select_parts
from fedsynth.spec import ImageSpec

TEN = tuple("0123456789")
SIZES = {
    "grid": (ImageSpec(16, 8, TEN), (312_320, 181_120, 589_520)),
    "digits": (ImageSpec(1, 8, TEN), (120_320, 164_736, 350_497)),
    "dp-small": (ImageSpec(1, 8, TEN), (11_792, 11_488, 17_393)),
    "small": (ImageSpec(3, 32, TEN), (256_960, 181_504, 676_771)),
    "mnist": (ImageSpec(1, 32, TEN), (3_801_216, 788_992, 7_146_497)),
    "cifar10": (ImageSpec(3, 32, TEN), (10_528_128, 2_888_704, 22_334_595)),
    "celeba": (ImageSpec(3, 32, TEN[:8]), (10_527_104, 2_888_704, 22_334_595)),
}
"""Parameters of encoder, bottleneck and decoder for images of a kind."""


def size(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_every_preset_is_in_one_part(preset: str) -> None:
    spec, sizes = SIZES[preset]
    unet = build_unet(preset, spec, torch.Generator())
    whole = unet.state_dict()
    parts = [select_parts(whole, [part]) for part in PARTS]
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(whole)
    found = tuple(sum(tensor.numel() for tensor in part.values()) for part in parts)
    assert found == sizes
    assert found == (
        size(unet.conv_in, unet.time_embedding, unet.class_embedding, unet.down_blocks),
        size(unet.mid_block),
        size(unet.up_blocks, unet.conv_norm_out, unet.conv_out),
    )
    assert sum(found) == size(unet)


def test_tensors_are_selected_as_they_are_and_in_their_order(tiny_unet: Callable[[], UNet2DModel]) -> None:
    whole = tiny_unet().state_dict()
    assert list(select_parts(whole, reversed(PARTS))) == list(whole)
    some = select_parts(whole, ["decoder", "bottleneck"])
    assert list(some) == [name for name in whole if name.split(".")[0] in ("mid_block", "up_blocks")] + [
        name for name in whole if "_out." in name and name.startswith("conv_")
    ]
    assert all(tensor is whole[name] for name, tensor in some.items())
    assert select_parts(whole, []) == {}


@pytest.mark.parametrize("name", ["", "add_embedding.weight", "conv_in_2.weight", "module.conv_in.weight"])
def test_unknown_parameter(name: str) -> None:
    with pytest.raises(ValueError, match=f"parameter '{name}' belongs to no part"):
        part_of(name)
    with pytest.raises(ValueError, match="belongs to no part"):
        select_parts({name: torch.zeros(1)}, ["decoder"])
