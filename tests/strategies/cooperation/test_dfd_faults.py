"""Whole runs of cooperative inference with real silos, some of which fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.messages import wire
from fedsynth.output import RunFolder

Tamper = Callable[[list[Message]], list[Message]]
UNEVEN: dict[str, Scalar] = {
    **{"strategy": "dfd", "partition": "dirichlet", "alpha": 0.1, "samples_per_client": 100},
    **{"dfd_rounds": 6, "seed": 0, "membership_inference": False},
}
LOST = "silo-1"


def silent(batches: range) -> Tamper:
    """The noise predictions of one silo are lost in some batches of answers; it answers everything else."""
    seen = 0

    def tamper(replies: list[Message]) -> list[Message]:
        nonlocal seen
        seen += any(wire.EPSILON_RECORD in wire.array_names(reply) for reply in replies)
        return [reply for reply in map(emptied, replies)] if seen in batches else replies

    def emptied(reply: Message) -> Message:
        if wire.EPSILON_RECORD in wire.array_names(reply) and wire.silo_key(reply)[1] == LOST:
            reply.content[wire.EPSILON_RECORD] = wire.encode_tensors({})
        return reply

    return tamper


def run(folder: Path, name: str, tamper: Tamper = lambda replies: replies) -> RunFolder:
    return run_tiny(tiny_settings(folder, **UNEVEN, run_name=name), tamper, report=False)


def holders(folder: Path) -> np.ndarray:
    """Which silo trains on which class, bool (K, classes)."""
    config = RunConfig.from_run_config(tiny_settings(folder, **UNEVEN))
    federation = load_federation(config)
    return np.stack([federation.silo(k, config).train.label_counts() > 0 for k in range(3)])


def images_of_classes(folder: RunFolder, chosen: np.ndarray) -> dict[str, bytes]:
    return {path: data for path, data in images_of(folder).items() if chosen[int(path.split("/")[1])]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(project: Path) -> RunFolder:
    return run(project, "whole")


def test_a_silo_that_misses_rounds_changes_only_classes_that_it_shares(project: Path, whole: RunFolder) -> None:
    gappy = run(project, "gappy", silent(range(2, 4)))
    held = holders(project)
    shared = held[1] & (held.sum(0) > 1)
    assert (held[1] & ~shared).any()
    assert json.loads(gappy.results.read_text())["rounds"] > 6
    assert images_of(gappy).keys() == images_of(whole).keys()
    assert images_of_classes(gappy, ~shared) == images_of_classes(whole, ~shared)
    assert images_of_classes(gappy, shared) != images_of_classes(whole, shared)


def test_a_silo_that_never_returns_costs_its_own_classes_by_name(project: Path) -> None:
    left = run(project, "left", silent(range(3, 100)))
    held = holders(project)
    alone = held[1] & (held.sum(0) == 1)
    lost = [name for name, mine in zip("0123456789", alone, strict=True) if mine]
    per_class = Counter(path.split("/")[1] for path in images_of(left))
    assert per_class == {name: 3 for name in "0123456789" if name not in lost}
    note = f"no images of class {', '.join(lost)}: its holders stopped answering before the end"
    assert json.loads(left.results.read_text())["notes"] == note
    assert note in (left.synthetic / "README.md").read_text()
