"""Cooperation with a model from elsewhere: one laboratory has trained with diffusers alone, and need not train again.

    python examples/foreign_models.py FOLDER

Its network has another architecture, predicts something else (v), and knows other classes than the two hospitals, who
train with fedsynth. All three make one set with every class. FOLDER receives the images that stand in for theirs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

import fedsynth
from fedsynth.data import LabelledImages, load_dataset

HELD = {"north": (0, 1, 2, 3, 4), "south": (5, 6, 7, 8, 9), "laboratory": (3, 4, 5, 6)}
"""Institution -> digits that it has images of."""


def write_images(data: LabelledImages, digits: tuple[int, ...], folder: Path) -> None:
    """Write images of some digits, one folder a class."""
    for digit in digits:
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(data.labels == digit)[:60]:
            Image.fromarray(data.images[number, :, :, 0]).save(folder / str(digit) / f"{number}.png")


def train_elsewhere(data: LabelledImages, digits: tuple[int, ...], folder: Path, steps: int) -> None:
    """Do what somebody who never heard of fedsynth did, and save it as diffusers does."""
    torch.manual_seed(0)
    rows = np.isin(data.labels, digits)
    images = torch.tensor(data.images[rows]).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.tensor(np.searchsorted(digits, data.labels[rows]))
    down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
    shape = {"block_out_channels": (16, 32), "norm_num_groups": 8, "down_block_types": down, "up_block_types": up}
    unet = UNet2DModel(8, 1, 1, num_class_embeds=len(digits), **shape)
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        noise, level = torch.randn(64, 1, 8, 8), torch.randint(1000, (64,))
        noisy = scheduler.add_noise(images[chosen], noise, level)
        wanted = scheduler.get_velocity(images[chosen], noise, level)
        loss = torch.nn.functional.mse_loss(unet(noisy, level, labels[chosen]).sample, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    # diffusers keeps no names of classes; fedsynth matches them by name.
    (folder / "classes.json").write_text(json.dumps([str(digit) for digit in digits]))


def main(folder: Path, foreign_steps: int = 2000, **changes: Any) -> fedsynth.Run:
    """Set the three up below ``folder``, and have them cooperate; ``changes`` are further settings."""
    train, _ = load_dataset("digits")
    for name, digits in HELD.items():
        write_images(train, digits, folder / "images" / name)
    train_elsewhere(train, HELD["laboratory"], folder / "model", foreign_steps)

    run = fedsynth.synthesise(
        silos={
            "north": folder / "images" / "north",
            "south": folder / "images" / "south",
            "laboratory": {"data_path": folder / "images" / "laboratory", "model_path": folder / "model"},
        },
        **{"output_dir": folder / "runs", "state_dir": folder / "state", "num_samples": 500, **changes},
    )
    print(f"{len(run.dataset.images)} images of classes {', '.join(run.dataset.classes)}\nreport {run.report}")
    return run


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/foreign_models.py FOLDER")
    main(Path(sys.argv[1]))
