"""Clipped sums of single gradients against one backward pass per record."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from fedsynth.config import RECIPES
from fedsynth.diffusion import PRESETS, build_unet, make_scheduler
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.privacy import gradients
from fedsynth.privacy.gradients import (
    MOST_NORM,
    bytes_per_record,
    clipped_gradient_sum,
    clipped_whole_sum,
    gaussian_noise,
    whole_scale,
)
from fedsynth.spec import ImageSpec

RECIPE = RECIPES["default"]
SCHEDULER = make_scheduler(RECIPE)
SPEC = ImageSpec(1, 8, ("zero", "one", "two"))
NARROW = {"mnist": (16, 16, 16, 16), "cifar10": (16, 32, 32, 32), "celeba": (16, 32, 32, 32)}
"""Channels for presets that are large as they are; attention and depth stay."""
CLIP = 12.0

Records = tuple[torch.Tensor, ...]


def loss(forward, clean, noise, t, labels):  # type: ignore[no-untyped-def]
    predicted = forward(SCHEDULER.add_noise(clean, noise, t), t, class_labels=labels).sample
    return denoising_loss(predicted, clean, noise, SCHEDULER.alphas_cumprod[t], RECIPE).mean()


def records(n: int, multiplicity: int = 3) -> Records:
    generator = torch.Generator().manual_seed(1)
    shape = (n, multiplicity, *SPEC.shape)
    t = torch.randint(1000, shape[:2], generator=generator)
    labels = (torch.arange(n) % 3)[:, None].expand(shape[:2])
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), t, labels


def one_by_one(network: UNet2DModel, batch: Records, clip: float) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The sum, and the norms before clipping."""
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    norms = []
    for row in zip(*batch, strict=True):
        network.zero_grad()
        loss(network, *row).backward()
        gradients = {name: value.grad for name, value in network.named_parameters()}
        norms.append(float(torch.stack([value.double().square().sum() for value in gradients.values()]).sum().sqrt()))
        for name, value in gradients.items():
            total[name] += value * min(1.0, clip / norms[-1])
    return total, norms


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_to_one_backward_pass_per_record(preset: str) -> None:
    network = build_unet(preset, SPEC, torch.Generator().manual_seed(0), NARROW.get(preset), 1)
    batch = records(3)
    expected, norms = one_by_one(network, batch, CLIP)
    assert max(norms) > CLIP
    found = clipped_gradient_sum(network, loss, batch, CLIP)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # An absolute tolerance: the true gradient of an attention's to_k.bias is 0.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=3e-6, msg=name)


def test_chunks_change_nothing(tiny_unet: UNet2DModel) -> None:
    batch = records(5)
    whole = clipped_gradient_sum(tiny_unet, loss, batch, CLIP)
    two = 2 * bytes_per_record(tiny_unet, loss, tuple(part[0] for part in batch)) + 1
    for memory in (two, 1):
        for name, value in clipped_gradient_sum(tiny_unet, loss, batch, CLIP, memory).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=3e-6)


def test_one_record_more_moves_the_sum_by_the_clip_at_most(tiny_unet: UNet2DModel) -> None:
    batch = records(4)
    clip = 0.01  # below every norm, so that each record counts for exactly as much
    with_all, without = (clipped_gradient_sum(tiny_unet, loss, tuple(part[:n] for part in batch), clip) for n in (4, 3))
    moved = torch.cat([(with_all[name] - without[name]).flatten() for name in with_all])
    assert float(moved.norm()) == pytest.approx(clip, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_record_without_a_finite_gradient_counts_as_nothing(tiny_unet: UNet2DModel, bad: float) -> None:
    batch = records(3)
    good = clipped_gradient_sum(tiny_unet, loss, tuple(part[:2] for part in batch), CLIP)
    batch[0][2, 0, 0, 0, 0] = bad
    found = clipped_gradient_sum(tiny_unet, loss, batch, CLIP)
    assert all(torch.equal(value, good[name]) for name, value in found.items())


def test_empty_sample_is_nothing(tiny_unet: UNet2DModel) -> None:
    found = clipped_gradient_sum(tiny_unet, loss, records(0), CLIP)
    assert not any(value.any() for value in found.values())
    assert found.keys() == dict(tiny_unet.named_parameters()).keys()


def test_network_is_left_as_it_was(tiny_unet: UNet2DModel) -> None:
    before = {name: value.clone() for name, value in tiny_unet.state_dict().items()}
    clipped_gradient_sum(tiny_unet, loss, records(2), CLIP)
    assert all(torch.equal(value, before[name]) for name, value in tiny_unet.state_dict().items())
    assert all(value.grad is None for value in tiny_unet.parameters())


def test_noise_has_its_standard_deviation() -> None:
    noise = gaussian_noise({"a": torch.zeros(300, 400), "b": torch.zeros(7)}, 2.5, torch.Generator().manual_seed(0))
    assert float(noise["a"].std()) == pytest.approx(2.5, rel=0.01)
    assert abs(float(noise["a"].mean())) < 0.03
    assert noise["b"].shape == (7,)


@pytest.fixture
def tiny_unet() -> UNet2DModel:
    return build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8), 1)


def test_in_whole_numbers_it_is_the_same_sum(tiny_unet: UNet2DModel) -> None:
    batch = records(4)
    plain = torch.cat([value.flatten() for value in clipped_gradient_sum(tiny_unet, loss, batch, CLIP).values()])
    for memory in (2**30, 1):
        whole = clipped_whole_sum(tiny_unet, loss, batch, CLIP, MOST_NORM, memory)
        assert whole.dtype == torch.int64
        scale = whole_scale(CLIP, MOST_NORM, len(whole))
        torch.testing.assert_close((whole / scale).float(), plain, rtol=1e-4, atol=3e-6 + 2 / scale)


@pytest.mark.parametrize("norm", [200, MOST_NORM])
def test_no_record_is_longer_than_the_norm_after_rounding(tiny_unet: UNet2DModel, norm: int) -> None:
    batch = records(3)
    found = [clipped_whole_sum(tiny_unet, loss, tuple(part[n : n + 1] for part in batch), 0.01, norm) for n in range(3)]
    for one in found:
        squared = sum(number * number for number in one.tolist())  # Python's whole numbers do not overflow
        assert 0.4 * norm**2 < squared <= norm**2
    together = clipped_whole_sum(tiny_unet, loss, batch, 0.01, norm)
    torch.testing.assert_close(together, found[0] + found[1] + found[2], rtol=1e-4, atol=3)


def test_a_record_that_rounding_made_too_long_counts_as_nothing(
    tiny_unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = records(2)
    monkeypatch.setattr(gradients, "whole_scale", lambda clip, norm, count: 1.01 * norm / clip)
    assert not clipped_whole_sum(tiny_unet, loss, batch, 0.01, 10_000).any()
    spoiled = (batch[0].clone(), *batch[1:])
    spoiled[0][0] = float("inf")
    monkeypatch.setattr(gradients, "whole_scale", whole_scale)
    alone = clipped_whole_sum(tiny_unet, loss, tuple(part[1:] for part in batch), CLIP, 10_000)
    assert torch.equal(clipped_whole_sum(tiny_unet, loss, spoiled, CLIP, 10_000), alone)


def test_whole_numbers_too_coarse_or_too_fine_are_refused(tiny_unet: UNet2DModel) -> None:
    for norm in (3, MOST_NORM + 1):
        with pytest.raises(ValueError, match=f"norm {norm}: must be above"):
            clipped_whole_sum(tiny_unet, loss, records(1), CLIP, norm)
