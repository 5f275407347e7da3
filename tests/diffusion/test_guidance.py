"""Guidance and the empty prompt, against networks of plain diffusers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_bases import CLASSES, embeddings_of, unet_of, write_base

from fedsynth.config import RunConfig
from fedsynth.diffusion import TrainingState, initial_unet, noise_predictor, settle_base_model, train
from fedsynth.diffusion.adapters import AdaptedUNet
from fedsynth.diffusion.denoiser import PromptedUNet
from fedsynth.errors import UserError
from fedsynth.latent.conditions import TABLE, write_conditions
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, CLASSES)
NOTHING = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
LABELS = torch.tensor([7, 0, 7])
needs_peft = pytest.mark.skipif(
    find_spec("peft") is None or find_spec("transformers") is None, reason="no transformers and peft"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_base(tmp_path_factory.mktemp("base"))
    write_conditions(folder / TABLE, {**embeddings_of(CLASSES), "": NOTHING})
    return folder


def config_of(folder: Path | str, **changes: Any) -> RunConfig:
    chosen = {"base_model": str(folder), "strategy": "fedavg", **changes}
    return RunConfig.from_run_config({name.replace("_", "-"): value for name, value in chosen.items()})


def network_of(folder: Path, **changes: Any) -> PromptedUNet:
    network = initial_unet(config_of(folder, **changes), SPEC)
    assert isinstance(network, PromptedUNet)
    return network


def noisy() -> torch.Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def predicted(folder: Path, **changes: Any) -> torch.Tensor:
    config = settle_base_model(config_of(folder, **changes))
    return noise_predictor(initial_unet(config, SPEC), config.recipe, 10.0)(noisy(), 500, LABELS)


def of_diffusers() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for the classes' prompts, and for the empty one."""
    prompts = torch.stack([embeddings_of(CLASSES)[f"a photo of {label}"] for label in LABELS.tolist()])
    with torch.inference_mode():
        return tuple(unet_of(0)(noisy(), 500, p).sample for p in (prompts, NOTHING.expand(3, -1, -1)))


def test_guidance_goes_beyond_the_prompt_and_away_from_the_empty_one(base: Path) -> None:
    of_class, of_nothing = of_diffusers()
    found = predicted(base, guidance=3.0)
    torch.testing.assert_close(found, of_nothing + 3 * (of_class - of_nothing), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, of_class, atol=1e-3)


def test_guidance_1_is_none_bit_for_bit_and_asks_once(base: Path) -> None:
    plain = predicted(base)
    with mock.patch.object(PromptedUNet, "forward", autospec=True, side_effect=PromptedUNet.forward) as asked:
        assert torch.equal(predicted(base, guidance=1.0, label_dropout=0.5), plain)
    assert asked.call_count == 1
    assert torch.equal(plain, of_diffusers()[0])


def test_what_a_network_predicts_makes_no_difference(tmp_path: Path) -> None:
    folder = write_base(tmp_path, prediction_type="v_prediction")
    write_conditions(folder / TABLE, {**embeddings_of(CLASSES), "": NOTHING})
    one, three = (predicted(folder, guidance=w) for w in (1.0, 3.0))
    network, config = network_of(folder, guidance=3.0), settle_base_model(config_of(folder))
    network.guidance = 1.0
    nothing = noise_predictor(network, config.recipe, 10.0)(noisy(), 500, torch.full((3,), len(CLASSES)))
    torch.testing.assert_close(three, nothing + 3 * (one - nothing), atol=1e-4, rtol=1e-4)


def test_dropped_labels_are_trained_as_the_empty_prompt(base: Path) -> None:
    def asked_of(share: float) -> tuple[torch.Tensor, float]:
        config = settle_base_model(config_of(base, label_dropout=share, train_steps=2, batch_size=64))
        network = initial_unet(config, SPEC)
        state = TrainingState(network, config.recipe, torch.Generator().manual_seed(0), 2)
        with mock.patch.object(PromptedUNet, "forward", autospec=True, side_effect=PromptedUNet.forward) as asked:
            losses = train(state, torch.randn(8, 2, 4, 4), torch.arange(8), config.training, 2)
        return torch.cat([call.kwargs["class_labels"] for call in asked.call_args_list]), losses[0]

    torch.manual_seed(0)
    (none, _), (some, _) = asked_of(0.0), asked_of(0.25)
    assert int(none.max()) < 8
    assert 0.12 < float((some == len(CLASSES)).float().mean()) < 0.38
    kept = some[:64] != len(CLASSES)
    assert torch.equal(some[:64][kept], none[:64][kept]), "the same images, noise and timesteps"


def test_a_table_without_the_empty_prompt_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path)
    network_of(folder)
    with pytest.raises(UserError, match=r"'conditions.safetensors' has no embeddings of prompt '': write it again"):
        network_of(folder, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"guidance": 0.5}, "guidance = 0.5: must be a number >= 1 and <= 100"),
        ({"guidance": 2.0, "strategy": "dfd", "weights": "energy"}, "weights = 'energy' with guidance = 2.0: a guided"),
        ({"guidance_source": "base"}, "guidance-source = 'base': acts with train = 'lora' only"),
        ({"base_model": "", "guidance": 2.0}, "guidance = 2.0: acts with base-model = a folder only"),
        ({"base_model": "", "label_dropout": 0.1}, "label-dropout = 0.1: acts with base-model = a folder only"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**{"folder": "base", **changes} if "base_model" not in changes else {"folder": "", **changes})
    assert problem in str(caught.value)


@needs_peft
@pytest.mark.parametrize("source", ["silo", "base"])
def test_the_empty_prompt_is_the_silo_s_or_the_base_s(source: str, base: Path) -> None:
    network = network_of(base, train="lora", guidance=3.0, guidance_source=source, lora_targets="all")
    assert isinstance(network, AdaptedUNet)
    network.load_state_dict({name: 0.2 * torch.randn(v.shape) for name, v in network.state_dict().items()})
    with torch.inference_mode():
        found = network.guided(noisy(), 500, LABELS)
        of_class = network(noisy(), 500, LABELS).sample
        nothing = network(noisy(), 500, torch.full((3,), len(CLASSES))).sample
    of_base = of_diffusers()[1]
    assert not torch.allclose(nothing, of_base, atol=1e-3)
    away = of_base if source == "base" else nothing
    torch.testing.assert_close(found, away + 3 * (of_class - away), atol=1e-4, rtol=1e-4)
    assert len(list(network.parameters())) == len(network.state_dict())
