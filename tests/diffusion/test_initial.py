from __future__ import annotations

import pytest
import torch

from fedsynth.config import RunConfig
from fedsynth.diffusion import initial_unet, pick_device
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("a", "b"))


def config(**keys: str | int) -> RunConfig:
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in keys.items()})


def test_follows_the_configuration() -> None:
    unet = initial_unet(config(block_out_channels="8,12", layers_per_block=2), SPEC)
    assert (unet.config.block_out_channels, unet.config.layers_per_block) == ((8, 12), 2)
    assert initial_unet(config(dataset="mnist", model="digits"), SPEC).config.block_out_channels == (32, 64)


@pytest.mark.parametrize(
    ("dataset", "default", "paper"),
    [
        ("digits", (32, 64), (32, 64)),
        ("imagefolder", (32, 64), (32, 64, 64)),
        ("fashion-mnist", (64, 64), (128, 128, 128, 128)),
        ("cifar10", (64, 64), (128, 256, 256, 256)),
    ],
)
def test_auto_is_the_recipe_s_network(dataset: str, default: tuple[int, ...], paper: tuple[int, ...]) -> None:
    spec = {"digits": SPEC, "imagefolder": SPEC, "cifar10": ImageSpec(3, 32, SPEC.classes)}
    wanted = spec.get(dataset, ImageSpec(1, 32, SPEC.classes))
    own, papers = (initial_unet(config(dataset=dataset, recipe=name), wanted) for name in ("default", "paper"))
    assert (own.config.block_out_channels, papers.config.block_out_channels) == (default, paper)
    # The default recipe folds 32x32 pixels into 8x8 places of 16 channels a colour.
    assert own.config.sample_size == 8
    assert own.config.in_channels == own.config.out_channels == wanted.channels * (wanted.size // 8) ** 2
    assert (papers.config.sample_size, papers.config.in_channels) == (wanted.size, wanted.channels)


def test_depends_on_the_seed_and_not_on_the_strategy() -> None:
    seeds = [initial_unet(config(seed=seed, strategy=s), SPEC) for seed, s in ((0, "dfd"), (0, "fedavg"), (1, "dfd"))]
    first, other_strategy, other_seed = (unet.conv_in.weight for unet in seeds)
    assert torch.equal(first, other_strategy)
    assert not torch.equal(first, other_seed)


@pytest.mark.parametrize(
    ("wanted", "present", "found"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_device(wanted: str, present: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert pick_device(wanted) == torch.device(found)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device = 'cuda': this process sees no CUDA device"):
        pick_device("cuda")
