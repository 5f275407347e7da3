"""Models of small silos of digits, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clients.models.local_model import LocalModel, load_network
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import noise_predictor

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "block-out-channels": "8,8",
    "device": "cpu",
    "num-clients": 3,
    "partition": "iid",
    "samples-per-client": 40,
    "train-steps": 5,
}


def config_of(**changes: Any) -> RunConfig:
    """Settings of a tiny network; changes in snake case."""
    return RunConfig.from_run_config({**SETTINGS, **{key.replace("_", "-"): value for key, value in changes.items()}})


def model_of(state: Path, silo: int = 0, **changes: Any) -> LocalModel:
    """The model of one silo, its state below ``state``."""
    config = config_of(**changes)
    federation = load_federation(config)
    return LocalModel(federation.silo(silo, config), federation.spec, config, state)


def questions() -> tuple[torch.Tensor, int, torch.Tensor]:
    """Four noisy samples, their timestep and their labels."""
    x = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return x, 500, torch.tensor([0, 3, 3, 9])


def epsilon(model: LocalModel) -> torch.Tensor:
    """What a finished model answers to :func:`questions`."""
    return noise_predictor(load_network(model.folder, CPU))(*questions())
