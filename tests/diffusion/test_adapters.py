"""Adapters in a base model's U-Net."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bases import CLASSES, unet_of, write_base

from fedsynth.adapter_shapes import adapted_layers, factor_shapes
from fedsynth.config import RunConfig
from fedsynth.diffusion import TrainingState, adapters, initial_unet, settle_base_model, train, training_bytes
from fedsynth.diffusion.adapters import ADAPTERS_FILE, AdaptedUNet, load_adapters, write_adapters
from fedsynth.diffusion.denoiser import PromptedUNet
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, CLASSES)
needs_peft = pytest.mark.skipif(
    find_spec("peft") is None or find_spec("transformers") is None, reason="no transformers and peft"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def config_of(folder: Path | str, **changes: Any) -> RunConfig:
    chosen = {"base_model": str(folder), "strategy": "fedavg", "train": "lora", "lora_rank": 2, **changes}
    return RunConfig.from_run_config({name.replace("_", "-"): value for name, value in chosen.items()})


def adapted(folder: Path, **changes: Any) -> AdaptedUNet:
    network = initial_unet(config_of(folder, **changes), SPEC)
    assert isinstance(network, AdaptedUNet)
    return network


def learnt(network: AdaptedUNet, seed: int = 0) -> AdaptedUNet:
    """With a B that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    network.load_state_dict(
        {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    )
    return network


def answer(network: torch.nn.Module, **given: Any) -> torch.Tensor:
    x, labels = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 0, 7])
    with torch.inference_mode():
        return network(x, 500, **(given or {"class_labels": labels})).sample


def test_a_missing_package_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train = 'lora' needs peft: pip install 'fedsynth\[base\]' at the server"):
        initial_unet(config_of(base), SPEC)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"strategy": "krum", "lora_aggregation": "svd"},
            "lora-aggregation = 'svd' with strategy = 'krum': many",
        ),
        (
            {"strategy": "fedadam", "lora_aggregation": "stack"},
            "set lora-aggregation = 'freeze-a', where all",
        ),
        (
            {"strategy": "feddiffuse"},
            "strategy = 'feddiffuse' with a base-model: that is not built; choose",
        ),
        ({"sample_from": "ema"}, "sample-from = 'ema' with lora-aggregation = 'svd': the moving average of factors"),
        ({"strategy": "pooled", "lora_aggregation": "svd"}, "lora-aggregation = 'svd': acts with strategy = 'fedavg'"),
        ({"train": "unet", "strategy": "krum"}, "that is not built; set train = 'lora', or choose fedavg"),
        ({"train": "unet"}, "lora-rank = 2: acts with train = 'lora' only"),
        ({"train": "full"}, "unknown train 'full'"),
        ({"base_model": "", "lora_rank": 8}, "train = 'lora': acts with base-model = a folder only"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], problem: str) -> None:
    if changes.get("strategy") == "krum" and changes.get("train") == "unet":
        changes = {**changes, "lora_rank": 8}
    with pytest.raises(UserError) as caught:
        config_of("base", **changes)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"strategy": name} for name in ("fedmedian", "fedtrimmedavg", "krum", "bulyan", "fedavgm", "fedyogi")),
        {"strategy": "fedprox", "lora_aggregation": "stack"},
        {"lora_aggregation": "freeze-a", "sample_from": "ema"},
    ],
)
def test_rules_that_are_sound_are_taken_and_need_no_word(changes: dict[str, Any]) -> None:
    config = config_of("base", **changes)
    means = changes["strategy"] == "fedprox" if "strategy" in changes else False
    assert config.settings.lora_aggregation == ("stack" if means else "freeze-a")
    assert config.recipe.learning_rate == 1e-4


@needs_peft
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_only_adapters_are_trained_and_they_begin_as_nothing(targets: str, base: Path) -> None:
    network = adapted(base, lora_targets=targets)
    plain = unet_of(0)
    expected = factor_shapes(adapted_layers({n: v.shape for n, v in plain.state_dict().items()}, targets), 2)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert sum(value.numel() for value in network.parameters()) == sum(torch.Size(s).numel() for s in expected.values())
    plain_answer = answer(initial_unet(config_of(base, train="unet", lora_rank=8), SPEC))
    assert torch.equal(answer(network), plain_answer)
    again, first = adapted(base, lora_targets=targets).state_dict(), next(iter(expected))
    assert all(map(torch.equal, network.state_dict().values(), again.values()))
    assert not torch.equal(again[first], adapted(base, lora_targets=targets, seed=1).state_dict()[first])
    assert not torch.allclose(answer(learnt(network)), plain_answer)


@needs_peft
def test_merged_and_folded_networks_answer_as_with_adapters(base: Path) -> None:
    network = learnt(adapted(base, lora_targets="all", lora_aggregation="stack"))
    before = answer(network)
    labels = torch.tensor([7, 0, 7])
    merged = network.merged()
    assert merged.state_dict().keys() == unet_of(0).state_dict().keys()
    found = answer(merged, encoder_hidden_states=network.conditions[labels])
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)
    network.fold(3)
    torch.testing.assert_close(answer(network), before, atol=1e-5, rtol=1e-5)
    assert not any(value.any() for name, value in network.state_dict().items() if "lora_B" in name)
    again = adapted(base, lora_targets="all", lora_aggregation="stack")
    again.fold(3)
    assert torch.equal(again.state_dict()["conv_in.lora_A.weight"], network.state_dict()["conv_in.lora_A.weight"])
    again.fold(4)
    assert not torch.equal(again.state_dict()["conv_in.lora_A.weight"], network.state_dict()["conv_in.lora_A.weight"])


@needs_peft
def test_with_a_frozen_a_only_b_is_trained_and_sent(base: Path) -> None:
    frozen, free = adapted(base, lora_aggregation="freeze-a"), adapted(base)
    assert frozen.state_dict().keys() == {name for name in free.state_dict() if "lora_B" in name}
    assert len(list(frozen.parameters())) * 2 == len(list(free.parameters()))
    assert all(map(torch.equal, frozen.factors().values(), free.factors().values()))


@needs_peft
def test_adapters_that_do_not_fit_are_refused_and_nothing_is_taken(base: Path) -> None:
    network = adapted(base)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wider = adapted(base, lora_rank=3).state_dict()
    name = next(iter(before))
    for state, problem in (
        (wider, "has shape (3, 8), not (2, 8)"),
        ({**before, "conv_in.lora_A.weight": before[name]}, "'conv_in.lora_A.weight' is missing or unknown"),
        ({name: before[name]}, "is missing or unknown"),
    ):
        with pytest.raises(ValueError, match="adapter ") as caught:
            network.load_state_dict(state)
        assert problem in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    stacked = adapted(base, lora_aggregation="stack")
    stacked.load_state_dict(wider)
    huge = {name: value.new_zeros((9, 8) if "lora_A" in name else (8, 9)) for name, value in before.items()}
    with pytest.raises(ValueError, match="has rank 9, at most 8"):
        stacked.load_state_dict(huge)


@needs_peft
def test_adapters_of_another_base_are_refused_by_key(base: Path, tmp_path: Path) -> None:
    network = learnt(adapted(base))
    write_adapters(tmp_path, network)
    loaded = load_adapters(tmp_path, adapted(base))
    assert all(map(torch.equal, loaded.state_dict().values(), network.state_dict().values()))
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"base-model: the adapters in '.*' are for the base model '[0-9a-f]{64}',"):
        load_adapters(tmp_path, adapted(other))
    (tmp_path / ADAPTERS_FILE).write_bytes(b"no adapters")
    with pytest.raises(ValueError, match="is damaged"):
        load_adapters(tmp_path, adapted(base))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "unet", "lora_rank": 8},
        pytest.param({"lora_targets": "all"}, marks=needs_peft),
        pytest.param({"lora_aggregation": "freeze-a"}, marks=needs_peft),
    ],
    ids=["whole", "adapters", "frozen A"],
)
def test_memory_of_training_is_as_predicted(changes: dict[str, Any], base: Path) -> None:
    config = settle_base_model(config_of(base, **changes))
    network = initial_unet(config, SPEC)
    assert isinstance(network, PromptedUNet)
    state = TrainingState(network, config.recipe, torch.Generator().manual_seed(0), 2)
    train(state, torch.randn(8, 2, 4, 4), torch.arange(8), config.training, 1)
    weights = list(network.unet.parameters())
    held = [*weights, *(weight.grad for weight in weights if weight.grad is not None), *state.ema.shadow_params]
    held += [value for moments in state.optimizer.state.values() for value in moments.values() if value.ndim]
    assert sum(value.nbytes for value in held) == training_bytes(config, SPEC)
