"""A server that wants the exact number of a silo's images: it asks until the noise of the answers averages out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_folders import write_images
from one_silo import SPEC, Node, evaluate_request, settings_of

from fedsynth.diffusion import initial_unet
from fedsynth.messages import (
    PrepareRequest,
    StatisticsRequest,
    TrainRequest,
    UploadRequest,
    transport,
)
from fedsynth.policy import SiloPolicy, document

COUNTS = np.array([60, 45])
QUESTIONS = 150
SCALE = 5.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and policy of a silo that answers every kind of message."""
    write_images(tmp_path / "clinic", {"even": 60, "odd": 45})
    kinds = ("describe", "prepare", "train", "upload", "statistics", "evaluate")
    (tmp_path / "silo-policy.toml").write_text(document(SiloPolicy(answers=kinds, count_noise=SCALE)))
    return tmp_path


def met(folder: Path, state: str = "own", **settings: Any) -> Node:
    """The silo as one more run meets it, with whatever that run's server has set."""
    return Node(
        settings_of(folder, **settings),
        SPEC,
        data_path=str(folder / "clinic"),
        silo_name="clinic",
        state_path=str(folder / state),
        policy_path=str(folder / "silo-policy.toml"),
    )


def told(folder: Path, number: int) -> np.ndarray:
    """All images per class that the silo seems to have, from one question of many that differ in all they can."""
    fraction = 0.001 * (number % 5)
    node = met(
        folder,
        label_count_noise=SCALE + 1e-6 * number,
        seed=number,
        holdout_fraction=fraction,
        skip_bad_images=number % 2 == 1,
        state_dir=f"elsewhere-{number}",
        dataset="imagefolder",
        partition="iid",
    )
    counts = node.ask(PrepareRequest(spec=SPEC)).label_counts
    return np.array(counts) + 1.0 * np.ceil(fraction * sum(counts)) * np.array(counts) / sum(counts)


def test_noise_does_not_average_out(folder: Path) -> None:
    estimates = np.array([told(folder, number) for number in range(QUESTIONS)])
    # What rounding a held-out share leaves; independent draws would be up to 40 apart.
    assert np.ptp(estimates, axis=0).max() <= 2
    first = estimates[0]
    assert np.abs(estimates.mean(axis=0) - first).max() <= 1


def test_the_one_draw_is_not_the_truth(folder: Path) -> None:
    """Three silos of the same images: all six draws are 0 once in a million times."""
    found = [met(folder, f"own-{k}", holdout_fraction=0).ask(PrepareRequest(spec=SPEC)) for k in range(3)]
    assert any(answer.label_counts != tuple(COUNTS) for answer in found)


def test_no_other_message_tells_the_number(folder: Path) -> None:
    node = met(folder, holdout_fraction=0.1, train_steps=2, early_stop=False, copy_check=False)
    known = node.prepare().num_examples
    weights = transport.encode_tensors(initial_unet(node.config, SPEC).state_dict())
    trained = node.ask(TrainRequest(arrays=weights, spec=SPEC, server_round=1, steps=2))
    assert (trained.num_examples, trained.loss) == (known, None)
    assert node.ask(UploadRequest(spec=SPEC)).num_examples == known
    everything = node.ask(StatisticsRequest(extractor="random-features", spec=SPEC)).num_examples
    assert everything == met(folder, holdout_fraction=0).ask(PrepareRequest(spec=SPEC)).num_examples
    held_out = evaluate_request()
    numbers = [node.ask(held_out).num_examples for _ in range(5)]
    assert len(set(numbers)) == 1
