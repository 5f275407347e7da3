"""Hostile and broken silos among honest ones that were trained for real: who is found out, and what they change."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from spoiled_answers import Tamper, spoil
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.errors import RunError
from fedsynth.messages import transport
from fedsynth.mixture.screening import LEVELS
from fedsynth.output import RunFolder, read_dataset

Attack = Callable[[torch.Tensor, int], torch.Tensor]
"""(honest ε, number of answers before) -> what the silo answers; the first is the calibration's at T."""

HOSTILE = "silo-1"
TRAINED: dict[str, Scalar] = {
    **{"strategy": "dfd", "screening": True, "block_out_channels": "8,16", "layers_per_block": 1, "train_steps": 60},
    **{"samples_per_client": 100, "dfd_rounds": 8, "num_samples": 40},
    **{"copy_check": False, "early_stop": False},
}
RECIPES: dict[str, dict[str, Scalar]] = {
    "default": {"recipe": "default"},
    "paper": {"recipe": "paper", "learning_rate": 2e-3},
}


def tampering(attack: Attack) -> Tamper:
    """Changes the noise predictions of one silo."""
    asked = count()

    def change(reply: Message) -> Message:
        (array,) = transport.array_record(reply, "epsilon").values()
        epsilon = attack(transport.decode(array), next(asked))
        reply.content["epsilon"] = transport.encode_tensors({"epsilon": epsilon})
        return reply

    return spoil("query.epsilon", change)


def noisy(eps: torch.Tensor, before: int) -> torch.Tensor:
    return eps + 0.5 * eps.std() * torch.randn(eps.shape, generator=torch.Generator().manual_seed(before))


ATTACKS: dict[str, Attack] = {
    "opposite": lambda eps, before: -eps,
    "honest-once": lambda eps, before: eps if before == 0 else -eps,
}
"""Others are judged without a run in test_screener."""


@pytest.fixture(scope="module", params=RECIPES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Named after a recipe; shared by all of its runs, so that the silos' models are trained once."""
    folder = tmp_path_factory.mktemp("hostile") / request.param
    folder.mkdir()
    return folder


def pixels(folder: RunFolder) -> np.ndarray:
    return read_dataset(folder.synthetic).images.astype(float)


def run(project: Path, name: str, attack: Attack | None = None) -> RunFolder:
    settings = tiny_settings(project, run_name=name, **TRAINED, **RECIPES[project.name])
    return run_tiny(settings, tampering(attack) if attack else list, report=False)


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
        assert "undertrained" not in log
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
    status = json.loads(folder.status.read_text())["silos"]
    assert status[HOSTILE]["left-out"].startswith("screening: class index 0")
    assert "left-out" not in status["silo-0"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_undertrained_silos_are_told_so_and_still_make_a_dataset(recipe: str, tmp_path: Path) -> None:
    """As a first try: two silos alike, few steps of training, few rounds."""
    few: dict[str, Scalar] = {"num_clients": 2, "train_steps": 10, "dfd_rounds": 4, "sampler": "sde-dpmsolver++"}
    folder = run_tiny(tiny_settings(tmp_path, **{**TRAINED, **RECIPES[recipe], **few}), report=False)
    log = folder.log.read_text()
    told = "the silos' models are undertrained: the middle one has "
    assert told in log
    assert "raise train-steps (10)" in log
    assert log.index(told) < log.index("round 4/4")
    assert "left out" not in log
    assert len(read_dataset(folder.synthetic).images) == 40


def test_where_screening_leaves_out_everybody_the_run_says_so_and_not_that_silos_are_missing(project: Path) -> None:
    """The calibration passes; in the rounds every silo answers ten times too much."""
    asked = count()

    def too_much(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.metadata.message_type == "query.epsilon" and next(asked) >= 3 * len(LEVELS):
                (array,) = transport.array_record(reply, "epsilon").values()
                reply.content["epsilon"] = transport.encode_tensors({"epsilon": 10 * transport.decode(array)})
        return replies

    settings = tiny_settings(project, run_name="tenfold", **TRAINED, **RECIPES[project.name])
    with pytest.raises(
        RunError, match=r"no class was finished: all answers were left out.*train-steps \(60\)"
    ) as caught:
        run_tiny(settings, too_much, report=False)
    assert "missing" not in str(caught.value)
    assert "resume" not in str(caught.value)
    folder = RunFolder(project / "runs" / "tenfold")
    assert "waits: screening leaves out the answers of all its holders" in folder.log.read_text()
    silos = json.loads(folder.status.read_text())["silos"]
    assert all(silos[name]["left-out"].startswith("screening: class index ") for name in ("silo-0", "silo-1"))
    attendance = folder.read_metrics()[-1]["attendance"]
    assert attendance["silo-1"]["left-out"].startswith("screening: ")
