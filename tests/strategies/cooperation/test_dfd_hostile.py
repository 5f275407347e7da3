"""Hostile and broken silos among honest ones that were trained for real: who is found out, and what they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from PIL import Image
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.messages import sender_of, transport
from fedsynth.output import RunFolder

Attack = Callable[[torch.Tensor, int], torch.Tensor]
"""(honest ε, number of answers before) -> what the silo answers; the first is the calibration's at T."""

HOSTILE = "silo-1"
TRAINED: dict[str, Scalar] = {
    **{"strategy": "dfd", "screening": True, "block_out_channels": "8,16", "layers_per_block": 1, "train_steps": 60},
    **{"learning_rate": 2e-3, "samples_per_client": 100, "dfd_rounds": 8, "num_samples": 40},
    **{"copy_check": False, "early_stop": False},
}


class Tampering:
    """Changes the noise predictions of one silo."""

    def __init__(self, attack: Attack) -> None:
        self._attack, self._asked = attack, 0

    def __call__(self, replies: list[Message]) -> list[Message]:
        for reply in replies:
            if "epsilon" in transport.array_names(reply) and sender_of(reply).name == HOSTILE:
                (array,) = transport.array_record(reply, "epsilon").values()
                changed = self._attack(transport.decode(array), self._asked)
                self._asked += 1
                reply.content["epsilon"] = transport.encode_tensors({"epsilon": changed})
        return replies


def noisy(eps: torch.Tensor, before: int) -> torch.Tensor:
    return eps + 0.5 * eps.std() * torch.randn(eps.shape, generator=torch.Generator().manual_seed(before))


ATTACKS: dict[str, Attack] = {
    "opposite": lambda eps, before: -eps,
    "honest-once": lambda eps, before: eps if before == 0 else -eps,
}
"""Others are judged without a run in test_screener."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all runs, so that the silos' models are trained once."""
    return tmp_path_factory.mktemp("hostile")


def run(project: Path, name: str, attack: Attack | None = None) -> RunFolder:
    settings = tiny_settings(project, run_name=name, **TRAINED)
    return run_tiny(settings, Tampering(attack) if attack else list, report=False)


def pixels(folder: RunFolder) -> np.ndarray:
    paths = sorted(images_of(folder))
    return np.stack([np.asarray(Image.open(folder.path / path), dtype=float) for path in paths])


@pytest.fixture(scope="module")
def without(project: Path) -> np.ndarray:
    """Images that the two honest silos make alone."""

    def missing(eps: torch.Tensor, before: int) -> torch.Tensor:
        return eps[:0]

    return pixels(run(project, "without", missing))


def test_honest_silos_are_trusted_even_a_noisy_one(project: Path, without: np.ndarray) -> None:
    folders = run(project, "honest"), run(project, "noisy", noisy)
    for folder in folders:
        log = folder.log.read_text()
        assert "left out" not in log
        assert "not asked further" not in log
    # The third silo counts: otherwise the test below would show nothing.
    assert np.abs(pixels(folders[0]) - without).mean() > 3


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_silo_is_found_out_and_changes_nothing(attack: str, project: Path, without: np.ndarray) -> None:
    folder = run(project, attack, ATTACKS[attack])
    log = folder.log.read_text()
    assert f"{HOSTILE} is not asked further" in log or f"{HOSTILE} left out" in log
    assert "silo-0 is not" not in log
    assert "silo-2 is not" not in log
    assert np.abs(pixels(folder) - without).mean() < 1.0
