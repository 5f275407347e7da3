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
    assert initial_unet(config(), SPEC).config.block_out_channels == (32, 64)
    assert initial_unet(config(dataset="imagefolder"), SPEC).config.block_out_channels == (32, 64, 64)
    assert initial_unet(config(dataset="mnist", model="digits"), SPEC).config.block_out_channels == (32, 64)


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
