"""Means of low-rank adapters, against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch

from fedsynth.adapter_shapes import adapted_layers, factor_shapes
from fedsynth.averaging import Layers
from fedsynth.averaging.adapters import Adapter, stack, stacked_sum, truncate, truncated_mean

COUNTS = [30, 10, 40, 20]
SHARES = [0.3, 0.1, 0.4, 0.2]
LAYERS = {"down.to_q": (12, 20), "conv": (9, 5, 3, 3)}


def factors_of(seed: int, rank: int = 3) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in factor_shapes(LAYERS, rank).items()}


def product(model: Layers, layer: str) -> torch.Tensor:
    b, a = (model[f"{layer}.lora_{which}.weight"].double().flatten(1) for which in "BA")
    return b @ a


def exact_mean(models: list[Layers], layer: str) -> torch.Tensor:
    return sum(share * product(model, layer) for share, model in zip(SHARES, models, strict=True))


def copies(models: list[Layers]) -> list[Layers]:
    return [dict(model) for model in models]


def test_layers_with_adapters_and_their_shapes_follow_from_the_network_s() -> None:
    weights = {
        "mid.attn1.to_q.weight": (8, 6),
        "mid.attn1.to_out.0.weight": (8, 8),
        "mid.attn1.to_out.0.bias": (8,),
        "mid.norm.weight": (8,),
        "mid.conv.weight": (9, 5, 3, 3),
    }
    attention = adapted_layers(weights, "attention")
    assert list(attention) == ["mid.attn1.to_q", "mid.attn1.to_out.0"]
    assert factor_shapes(attention, 4)["mid.attn1.to_q.lora_A.weight"] == (4, 6)
    every = factor_shapes(adapted_layers(weights, "all"), 2)
    assert every["mid.conv.lora_A.weight"] == (2, 5, 3, 3)
    assert every["mid.conv.lora_B.weight"] == (9, 2, 1, 1)
    assert list(factor_shapes(attention, 4, frozen_a=True)) == [
        "mid.attn1.to_q.lora_B.weight",
        "mid.attn1.to_out.0.lora_B.weight",
    ]


def test_the_truncated_mean_is_the_nearest_of_its_rank() -> None:
    models = [factors_of(seed) for seed in range(4)]
    combined, energy = truncated_mean(copies(models), COUNTS)
    kept = whole = 0.0
    for layer, shape in LAYERS.items():
        exact = exact_mean(models, layer)
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
        nearest = left[:, :3] * values[:3] @ right[:3]
        torch.testing.assert_close(product(combined, layer), nearest, atol=1e-5, rtol=0)
        a, b = (combined[f"{layer}.lora_{which}.weight"] for which in "AB")
        assert (a.shape, b.shape, a.dtype) == ((3, *shape[1:]), (shape[0], 3, *(1,) * (len(shape) - 2)), torch.float32)
        # Balanced: B' and A' are equally large in every direction.
        torch.testing.assert_close(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=0))
        kept, whole = kept + float(values[:3].square().sum()), whole + float(values.square().sum())
    assert energy == pytest.approx(kept / whole)
    assert 0.3 < energy < 0.95, "random adapters of four silos do not fit into one"


def test_of_one_silo_the_truncated_mean_is_its_own_adapter() -> None:
    model = factors_of(0)
    combined, energy = truncated_mean(copies([model]), [7])
    assert energy == pytest.approx(1.0)
    for layer in LAYERS:
        torch.testing.assert_close(product(combined, layer), product(model, layer), atol=1e-5, rtol=0)


def test_the_mean_of_equal_a_is_exact_and_that_of_factors_is_not_otherwise() -> None:
    models = [factors_of(seed) for seed in range(4)]
    for model in models[1:]:
        model.update({name: value for name, value in models[0].items() if "lora_A" in name})
    combined, energy = truncated_mean(copies(models), COUNTS)
    assert energy == pytest.approx(1.0)
    for layer in LAYERS:
        exact = exact_mean(models, layer)
        torch.testing.assert_close(product(combined, layer), exact, atol=1e-5, rtol=0)
        of_factors = {name: sum(s * m[name] for s, m in zip(SHARES, models, strict=True)) for name in models[0]}
        torch.testing.assert_close(product(of_factors, layer), exact, atol=1e-5, rtol=0)


def test_stacking_is_exact_whatever_was_there_before() -> None:
    models, before = [factors_of(seed) for seed in range(4)], factors_of(9, rank=2)
    summed = stacked_sum(dict(before), copies(models), COUNTS)
    assert len(summed["conv.lora_A.weight"]) == 9, "of rank 14, at most that of the weights"
    assert len(summed["down.to_q.lora_A.weight"]) == 12
    for layer in LAYERS:
        exact = product(before, layer) + exact_mean(models, layer)
        torch.testing.assert_close(product(summed, layer), exact, atol=1e-5, rtol=0)
    nothing = {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in before.items()}
    small = stacked_sum(nothing, [factors_of(0, 1), factors_of(1, 1)], [1, 1])
    assert {len(value) for name, value in small.items() if "lora_A" in name} == {2}, "what is 0 takes no room"


def test_directions_without_a_value_can_be_trained_again() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(6, 2, generator=generator).double(), torch.randn(2, 5, generator=generator).double()
    one_dead = Adapter(torch.cat([b[:, :1], b[:, :1]], 1), a)
    adapter, kept, whole = truncate(one_dead, 2)
    torch.testing.assert_close(adapter.b @ adapter.a, one_dead.b @ one_dead.a)
    assert kept == pytest.approx(whole)
    assert not adapter.b[:, 1].any()
    assert float(adapter.a[1].norm()) == pytest.approx(1.0)
    untrained, kept, whole = truncate(Adapter(torch.zeros(6, 2).double(), a), 2)
    assert (kept, whole, bool(untrained.b.any())) == (0.0, 0.0, False)
    assert untrained.a.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_more_rank_than_weights_have_is_filled_with_nothing() -> None:
    adapter, _, _ = truncate(Adapter(torch.ones(2, 4).double(), torch.ones(4, 5).double()), 4)
    assert (adapter.b.shape, adapter.a.shape) == ((2, 4), (4, 5))
    torch.testing.assert_close(adapter.b @ adapter.a, torch.full((2, 5), 4.0).double())


def trained_alone(inputs: torch.Tensor, targets: torch.Tensor, a: torch.Tensor) -> Adapter:
    """Factors of rank 8 beside a frozen layer, after 100 steps on one silo's classes."""
    factors = [torch.zeros(len(targets[0]), len(a)).requires_grad_(), a.clone().requires_grad_()]
    optimiser = torch.optim.AdamW(factors, lr=6e-3)
    for _ in range(100):
        loss = (inputs @ factors[1].T @ factors[0].T - targets).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Adapter(*(factor.detach() for factor in factors))


def test_silos_of_disjoint_classes_fit_into_rank_8_within_5_percent() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    change, centres = normal(32, 48) / 48**0.5, 2 * normal(8, 48)
    start = (2 * torch.rand(8, 48, generator=generator) - 1) / 48**0.5
    silos = []
    for silo in range(4):
        inputs = centres[2 * silo : 2 * silo + 2].repeat(20, 1) + 0.3 * normal(40, 48)
        silos.append(trained_alone(inputs, inputs @ change.T, start))
    whole = stack(silos, [0.25] * 4)
    exact = whole.b @ whole.a
    _, kept, energy = truncate(whole, 8)
    of_factors = sum(silo.b for silo in silos).double() / 4 @ (sum(silo.a for silo in silos).double() / 4)
    lost = float((of_factors - exact).square().sum()) / energy
    assert energy == pytest.approx(float(exact.square().sum()))
    assert kept / energy > 0.95
    assert lost > 0.2, "the means of factors have another product"
