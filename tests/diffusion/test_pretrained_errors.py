from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from pretrained_folders import save_model, unet_of
from safetensors.torch import load_file, save_file

from fedsynth.config import RECIPES
from fedsynth.diffusion import Codec
from fedsynth.diffusion.pretrained import load_pretrained_model
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

CLASSES = ("zero", "one", "two")
SPEC = ImageSpec(1, 8, CLASSES)


def save(folder: Path, unet: UNet2DModel) -> Path:
    return save_model(folder, unet, CLASSES)


def error_of(folder: Path, held: tuple[str, ...] = CLASSES, spec: ImageSpec = SPEC) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained_model(folder, Codec(spec), RECIPES["paper"], held)
    start = f"model-path = '{folder}': "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value != "absent"}))


def test_missing_folders_and_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nowhere") == "there is no such folder: give a diffusers folder on this machine"
    assert error_of(tmp_path).startswith("holds no network (unet/config.json or config.json): give a folder that")
    folder = save(tmp_path / "model", unet_of())
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert error_of(folder) == (
        "no scheduler_config.json says which noise schedule the network was trained with: save its scheduler to"
        f" '{folder / 'scheduler'}' with save_pretrained"
    )


def test_images_that_do_not_fit_the_network(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", unet_of(block_out_channels=(8, 8, 8)))
    assert error_of(folder, spec=ImageSpec(3, 8, CLASSES)) == (
        "the network takes 1 channels and answers 1, but here it sees 3 of the run's images: give a model of such"
        " images, or remove model-path to train one here"
    )
    assert error_of(folder, spec=ImageSpec(1, 10, CLASSES)) == (
        "the network halves images to 1/4, and image-size = 10 is no multiple of it"
    )


def test_other_size_than_trained_for_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "model", unet_of())
    load_pretrained_model(folder, Codec(SPEC), RECIPES["paper"], CLASSES)
    assert not caplog.messages
    load_pretrained_model(folder, Codec(ImageSpec(1, 16, CLASSES)), RECIPES["paper"], CLASSES)
    assert caplog.messages == [f"model-path = '{folder}': made for images of size 8, asked about 16"]


UNET = {
    "the network is a UNet2DConditionModel: give a UNet2DModel": {"_class_name": "UNet2DConditionModel"},
    "the network takes noise standard deviations in place of timesteps": {"time_embedding_type": "fourier"},
    "class_embed_type = 'identity': give a model with num_class_embeds": {"class_embed_type": "identity"},
    "the network's config.json has no block_out_channels": {"block_out_channels": "absent"},
    "the network is damaged: copy or save it again (Must provide": {"down_block_types": ["DownBlock2D"]},
    "the network is damaged: copy or save it again (": {"layers_per_block": 2},
}
NO_SCHEDULE = "scheduler_config.json describes no noise schedule"
SCHEDULER = {
    "prediction_type = 'flow_prediction' in scheduler_config.json: must be one of epsilon, v_prediction, sample": {
        "prediction_type": "flow_prediction"
    },
    "scheduler_config.json has no betas: give a model of a variance-preserving": {"beta_start": "absent"},
    f"{NO_SCHEDULE} (spiral is not implemented": {"beta_schedule": "spiral"},
    f"{NO_SCHEDULE}: every beta must be > 0 and": {"beta_end": 1.5},
    f"{NO_SCHEDULE} (": {"num_train_timesteps": "many"},
}
CONFIGS = {"unet/config.json": UNET, "scheduler/scheduler_config.json": SCHEDULER}


@pytest.mark.parametrize(("file", "message"), [(file, message) for file, rows in CONFIGS.items() for message in rows])
def test_network_or_schedule_that_cannot_be_used(file: str, message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", unet_of())
    edit(folder / file, **CONFIGS[file][message])
    assert error_of(folder).startswith(message)


def test_damaged_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", unet_of())
    (weights,) = (folder / "unet").glob("*.safetensors")
    whole, tensors = weights.read_bytes(), {name: value.clone() for name, value in load_file(weights).items()}
    damaged = "the network is damaged: copy or save it again ("
    weights.unlink()
    weights.write_bytes(whole[: len(whole) // 2])
    assert error_of(folder).startswith(damaged)
    for change, name in (("missing", "conv_in.bias"), ("nan", "conv_out.weight"), ("extra", "spy.weight")):
        edited = dict(tensors)
        if change == "missing":
            del edited[name]
        else:
            edited[name] = torch.full((1, 8, 3, 3), math.nan)
        weights.unlink()
        save_file(edited, weights)
        assert error_of(folder) == f"{damaged}missing, unknown or not finite: {name})"
    for file in ("unet/config.json", "scheduler/scheduler_config.json", "classes.json"):
        broken = save(tmp_path / file.replace("/", "-"), unet_of())
        (broken / file).write_text("{")
        assert error_of(broken).startswith(f"'{Path(file).name}' cannot be read as JSON (")
        (broken / file).write_text("5")
        assert Path(file).name in error_of(broken)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    folder = save(tmp_path / "model", unet_of())
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.unlink()
    torch.save(Trap(), weights.with_suffix(".bin"))
    assert error_of(folder) == (
        "no safetensors weights in 'unet' (found diffusion_pytorch_model.bin), and pickled ones are not read, as they"
        " can run code: save the model again with safe_serialization=True"
    )
    assert not (tmp_path / "sprung").exists()


def test_classes_that_cannot_be_matched(tmp_path: Path) -> None:
    for held in ((), ("zero", "two")):
        assert error_of(save(tmp_path / "none", unet_of(classes=None)), held) == (
            f"the model has no classes, so that it can serve a silo of one class, but this one holds {len(held)}"
            f" ({', '.join(held)}): give a class-conditional model, or start one silo per class"
        )
    folder = save(tmp_path / "model", unet_of())
    (folder / "classes.json").unlink()
    assert error_of(folder) == (
        "the model has 3 classes, and nothing says which: put 'classes.json' there, a list of their names in index"
        ' order, such as ["cat", "dog"]'
    )
    for names in (["a", "b", "c", "d"], ["a", "a"], [], {"a": 1}):
        (folder / "classes.json").write_text(json.dumps(names))
        assert error_of(folder) == (
            f"classes.json must list 1 to 3 different class names in index order, not {names!r}"
        )
    (folder / "classes.json").write_text(json.dumps(["Zero", "One"]))
    assert error_of(folder, ("zero", "two")) == (
        "the model knows Zero, One, but this silo holds zero, two: did you mean 'Zero'?: give the model's classes the"
        f" run's names, in '{folder / 'classes.json'}'"
    )
