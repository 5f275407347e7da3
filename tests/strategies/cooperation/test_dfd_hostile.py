"""Hostile and broken silos among honest ones that were trained for real: who is found out, and what they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from PIL import Image
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.messages import wire
from fedsynth.output import RunFolder

Attack = Callable[[torch.Tensor, int], torch.Tensor]
"""(honest ε, t) -> what the silo answers."""

HOSTILE = "silo-1"
TRAINED: dict[str, Scalar] = {
    **{"strategy": "dfd", "screening": True, "block_out_channels": "8,16", "layers_per_block": 1, "train_steps": 120},
    **{"learning_rate": 2e-3, "samples_per_client": 100, "dfd_rounds": 8, "num_samples": 40},
    **{"copy_check": False, "early_stop": False},
}


class Tampering:
    """Changes the noise predictions of one silo."""

    def __init__(self, attack: Attack) -> None:
        self._attack = attack

    def __call__(self, replies: list[Message]) -> list[Message]:
        for reply in replies:
            if wire.EPSILON_RECORD in wire.array_names(reply) and wire.silo_key(reply)[1] == HOSTILE:
                self._change(reply)
        return replies

    def _change(self, reply: Message) -> None:
        (array,) = wire.array_record(reply, wire.EPSILON_RECORD).values()
        timestep = int(wire.number(wire.metrics(reply), "timestep"))
        changed = self._attack(wire.decode(array), timestep)
        reply.content[wire.EPSILON_RECORD] = wire.encode_tensors({wire.EPSILON_RECORD: changed})


def noisy(share: float) -> Attack:
    generator = torch.Generator().manual_seed(0)
    return lambda eps, t: eps + share * eps.std() * torch.randn(eps.shape, generator=generator)


def replayed() -> Attack:
    first: dict[torch.Size, torch.Tensor] = {}
    return lambda eps, t: first.setdefault(eps.shape, eps)


ATTACKS: dict[str, Callable[[], Attack]] = {
    "zero": lambda: lambda eps, t: torch.zeros_like(eps),
    "lazy": lambda: lambda eps, t: 0.05 * eps,
    "scaled": lambda: lambda eps, t: 10 * eps,
    "opposite": lambda: lambda eps, t: -eps,
    "not a number": lambda: lambda eps, t: torch.full_like(eps, torch.nan),
    "honest at T alone": lambda: lambda eps, t: eps if t == 999 else -eps,
    "replayed": replayed,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all runs, so that the silos' models are trained once."""
    return tmp_path_factory.mktemp("hostile")


def run(project: Path, name: str, attack: Attack | None = None, **changes: Any) -> RunFolder:
    settings = tiny_settings(project, **{**TRAINED, "run_name": name, **changes})
    return run_tiny(settings, Tampering(attack) if attack else lambda replies: replies, report=False)


def pixels(folder: RunFolder) -> np.ndarray:
    paths = sorted(images_of(folder))
    return np.stack([np.asarray(Image.open(folder.path / path), dtype=float) for path in paths])


@pytest.fixture(scope="module")
def without(project: Path) -> np.ndarray:
    """Images that the two honest silos make alone."""

    def missing(eps: torch.Tensor, t: int) -> torch.Tensor:
        return eps[:0]

    return pixels(run(project, "without", missing))


def test_honest_silos_are_trusted(project: Path, without: np.ndarray) -> None:
    folder = run(project, "honest")
    assert "left out" not in folder.log.read_text()
    assert "not asked further" not in folder.log.read_text()
    # The third silo counts: otherwise the tests below would show nothing.
    assert np.abs(pixels(folder) - without).mean() > 3


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("weights", ["posterior", "energy"])
def test_a_hostile_silo_is_found_out_and_changes_nothing(
    attack: str, weights: str, project: Path, without: np.ndarray
) -> None:
    name = f"{attack}-{weights}".replace(" ", "-")
    folder = run(project, name, ATTACKS[attack](), weights=weights)
    log = folder.log.read_text()
    assert f"{HOSTILE} is not asked further" in log or f"{HOSTILE} left out" in log
    assert "silo-0 is not" not in log
    assert "silo-2 is not" not in log
    if weights == "posterior":
        assert np.abs(pixels(folder) - without).mean() < 1.0


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_noisy_but_honest_silo_stays(share: float, project: Path) -> None:
    folder = run(project, f"noisy-{share}", noisy(share))
    assert "left out" not in folder.log.read_text()
    assert "not asked further" not in folder.log.read_text()


def test_without_screening_a_lazy_silo_takes_the_energy_weights(project: Path) -> None:
    """The same attack with and without the defence, by the number of silos that still have a say."""
    open_door = run(project, "open", ATTACKS["lazy"](), weights="energy", screening=False, max_silo_weight=1.0)
    experts = [row["effective-experts"] for row in open_door.read_metrics()]
    assert max(experts[:4]) < 1.05
    guarded = run(project, "guarded", ATTACKS["lazy"](), weights="energy")
    assert HOSTILE in guarded.log.read_text()
    assert np.mean([row["effective-experts"] for row in guarded.read_metrics()[:4]]) > 1.05
