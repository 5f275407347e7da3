"""Networks that start from a public model: which weights they take, and which models they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from public_models import write_public_model
from safetensors.torch import load_file, save_file

from fedsynth.config import RunConfig
from fedsynth.diffusion import initial_unet, public_start
from fedsynth.diffusion.initial import count_parameters
from fedsynth.diffusion.public_start import EMBEDDINGS
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("cat", "cow", "dog"))
PUBLIC = ("dog", "horse", "cat", "sheep")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_public_model(tmp_path_factory.mktemp("public") / "model", PUBLIC)


@pytest.fixture
def copy(public: Path, tmp_path: Path) -> Path:
    """A copy of the public model that may be spoiled."""
    return shutil.copytree(public, tmp_path / "copy")


def config_of(folder: Path | str, **changes: Any) -> RunConfig:
    given = {"block-out-channels": "8,8", **{key.replace("_", "-"): value for key, value in changes.items()}}
    return RunConfig.from_run_config({**given, "init-from": str(folder)})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def digest_of(folder: Path) -> str:
    start = public_start(config_of(folder))
    assert start is not None
    return start.digest


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_all_weights_are_the_public_models_and_class_embeddings_by_name(public: Path) -> None:
    found = initial_unet(config_of(public), SPEC).state_dict()
    fresh = initial_unet(config_of(""), SPEC).state_dict()
    theirs = weights_of(public)
    assert found.keys() == theirs.keys()
    for name, value in found.items():
        if name != EMBEDDINGS:
            assert torch.equal(value, theirs[name]), name
    cat, cow, dog = found[EMBEDDINGS]
    assert torch.equal(cat, theirs[EMBEDDINGS][2])
    assert torch.equal(dog, theirs[EMBEDDINGS][0])
    assert torch.equal(cow, fresh[EMBEDDINGS][1]), "a class that it does not know starts as without it"
    other_seed = initial_unet(config_of(public, seed=5), SPEC).state_dict()
    assert {name for name, value in found.items() if not torch.equal(value, other_seed[name])} == {EMBEDDINGS}
    assert count_parameters(config_of(public), SPEC) == sum(value.numel() for value in found.values())


def test_a_public_model_whose_classes_have_no_names_gives_no_embeddings(copy: Path) -> None:
    edit(copy / "model_index.json", classes=[])
    found, fresh = (initial_unet(config_of(folder), SPEC).state_dict() for folder in (copy, ""))
    assert torch.equal(found[EMBEDDINGS], fresh[EMBEDDINGS])
    weights = weights_of(copy)
    del weights[EMBEDDINGS]
    save_file(weights, copy / "unet" / "diffusion_pytorch_model.safetensors")
    edit(copy / "unet" / "config.json", num_class_embeds=None)
    unconditional = initial_unet(config_of(copy), SPEC).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in unconditional.items())


def test_digest_is_of_weights_and_classes_and_not_of_the_place(public: Path, copy: Path, tmp_path: Path) -> None:
    assert digest_of(copy) == digest_of(public)
    (copy / "classes.json").write_text(json.dumps(PUBLIC[::-1]))
    renamed = digest_of(copy)
    (copy / "classes.json").unlink()
    weights = weights_of(copy)
    weights["conv_out.bias"] = weights["conv_out.bias"] + 1e-3
    save_file(weights, copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert len({digest_of(public), renamed, digest_of(copy)}) == 3, "also where the same process has read it before"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_out_channels": "8,16"}, "block_out_channels = [8, 8] in config.json, and the run's network has [8, 1"),
        ({"layers_per_block": 2}, "layers_per_block = 1 in config.json, and the run's network has 2: give a model of"),
        ({"codec": "unshuffle-2"}, "in_channels = 1 in config.json, and the run's network has 4"),
        (
            {"prediction": "v"},
            "prediction_type = 'sample' in scheduler_config.json, and the run's networks have 'v_pre",
        ),
        (
            {"schedule": "linear"},
            "beta_schedule = 'squaredcos_cap_v2' in scheduler_config.json, and the run's networks",
        ),
        (
            {"num_train_timesteps": 500},
            "num_train_timesteps = 1000 in scheduler_config.json, and the run's networks ha",
        ),
    ],
)
def test_a_network_of_another_run_is_refused_by_key_and_value(
    changes: dict[str, Any], problem: str, public: Path
) -> None:
    with pytest.raises(UserError) as caught:
        initial_unet(config_of(public, **changes), SPEC)
    assert str(caught.value).startswith(f"init-from = '{public}': {problem}")


def test_settings_that_no_weight_shows_must_be_the_runs_too(copy: Path) -> None:
    edit(copy / "unet" / "config.json", norm_num_groups=1)
    with pytest.raises(UserError, match=r"norm_num_groups = 1 in config.json, and the run's network has 2"):
        initial_unet(config_of(copy), SPEC)


def spoil_nothing(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch here'\ntR.")


def spoil_file(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def spoil_numbers(folder: Path) -> None:
    weights = weights_of(folder)
    weights["conv_in.bias"][0] = torch.nan
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")


def spoil_shape(folder: Path) -> None:
    weights = weights_of(folder) | {"conv_in.bias": torch.zeros(3)}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")


def spoil_names(folder: Path) -> None:
    weights = weights_of(folder) | {"conv_more.bias": torch.zeros(3)}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")


def spoil_classes(folder: Path) -> None:
    (folder / "classes.json").write_text('["cat", "cat"]')


def spoil_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def spoil_kind(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (shutil.rmtree, "there is no such folder"),
        (spoil_nothing, "pickled weights are not read, as they can run code"),
        (spoil_file, "'diffusion_pytorch_model.safetensors' is damaged"),
        (spoil_numbers, "'conv_in.bias' in 'diffusion_pytorch_model.safetensors' is not of finite"),
        (spoil_shape, r"the network is damaged \('conv_in.bias' has shape \(3,\), not \(8,\)\)"),
        (spoil_names, r"the network is damaged \('conv_more.bias' is missing or unknown\)"),
        (spoil_classes, "classes.json must list 1 to 4 different class names"),
        (spoil_scheduler, "no scheduler_config.json says what the network predicts"),
        (spoil_kind, "the network is a UNet2DConditionModel: give a UNet2DModel"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(spoil: Any, problem: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(UserError, match=problem) as caught:
        initial_unet(config_of(copy), SPEC)
    assert str(caught.value).startswith(f"init-from = '{copy}': ")
