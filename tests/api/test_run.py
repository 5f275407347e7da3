from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler, UNet2DModel

import fedsynth
from fedsynth.errors import UserError
from fedsynth.output import RunFolder, SyntheticDataset, write_dataset


def test_a_run_gives_what_is_in_its_folder(run: fedsynth.Run) -> None:
    again = fedsynth.Run(str(run.path))
    assert (again.dataset.images.shape, again.dataset.classes) == ((30, 8, 8, 1), tuple("0123456789"))
    assert again.results["generator-steps"] == 4
    assert again.config.settings.dfd_rounds == len(again.metrics) == 4  # type: ignore[attr-defined]
    assert "a report" in again.report.read_text()
    assert repr(again) == f"Run({str(run.path)!r})"


def test_the_model_is_a_pipeline_whose_parts_diffusers_opens(run: fedsynth.Run) -> None:
    folder = run.path / "models" / "generator"
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    mine = run.model.unet.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in unet.state_dict().items())
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config == run.model.scheduler.config

    def draw(model: object) -> list[bytes]:
        generator = torch.Generator().manual_seed(0)
        return [im.tobytes() for im in model(["3", "0"], generator, num_inference_steps=3).images]  # type: ignore[operator]

    drawn = draw(run.model)
    assert len(set(drawn)) == 2
    assert draw(fedsynth.from_pretrained(folder)) == drawn == draw(fedsynth.from_pretrained(str(run.path)))


def test_damaged_and_foreign_models_are_refused(run: fedsynth.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path / "models" / "generator", tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model '.*model' is damaged .*checksum"):
        fedsynth.from_pretrained(tmp_path / "model")
    levels = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(8, 1, 1, norm_num_groups=4, **levels)
    DDPMPipeline(unet, DPMSolverMultistepScheduler()).save_pretrained(tmp_path / "foreign")
    with pytest.raises(UserError, match=r"is a DDPMPipeline: open it with diffusers\.DiffusionPipeline"):
        fedsynth.from_pretrained(tmp_path / "foreign")
    with pytest.raises(UserError, match=r"no folder of a model \(it holds no model_index\.json\), and no run folder"):
        fedsynth.from_pretrained(tmp_path)


def test_what_a_run_does_not_have_is_said(run: fedsynth.Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="is no run folder"):
        fedsynth.Run(tmp_path)
    shutil.copy(run.folder.config, folder.config)
    unfinished = fedsynth.Run(tmp_path)
    for name in ("dataset", "results", "report"):
        with pytest.raises(UserError, match=r"did not finish; resume it \(fedsynth\.synthesise\(resume="):
            getattr(unfinished, name)
    with pytest.raises(UserError, match="strategy = 'dfd' leaves none without generator-steps > 0"):
        _ = unfinished.model
    sets = {name: np.full((2, 8, 8, 1), place, np.uint8) for place, name in enumerate(("a", "b"))}
    for name, images in sets.items():
        write_dataset(SyntheticDataset(images, np.arange(2), ("x", "y"), {}), folder.synthetic / name)
    found = fedsynth.Run(tmp_path)
    assert {name: json.dumps(kept.images.tolist()) for name, kept in found.datasets.items()} == {
        name: json.dumps(images.tolist()) for name, images in sets.items()
    }
    with pytest.raises(UserError, match=r"choose from Run\.datasets \(a, b\)"):
        _ = found.dataset
