"""One plain process makes what a federated run makes: else their seconds could not be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.plain import cooperative_inference
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import Scalar


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "sde-dpmsolver++"},
        {"sampler": "ddpm", "recipe": "paper"},
        {"sampler": "sde-dpmsolver++", "image-size": 16, "codec": "unshuffle-2"},
    ],
    ids=["default recipe", "paper's recipe", "unshuffled"],
)
def test_plain_process_makes_the_images_of_the_run(settings: dict[str, Scalar], tmp_path: Path) -> None:
    run = begin_run(
        {
            "strategy": "dfd",
            "dataset": "digits",
            "num-clients": 2,
            "device": "cpu",
            "evaluate": False,
            "num-samples": 20,
            "dfd-rounds": 4,
            "train-steps": 3,
            "block-out-channels": "4,8",
            "screening": False,
            "state-dir": str(tmp_path),
            **settings,
        }
    )
    outcome = run.outcome()
    plain = cooperative_inference(run.task.config.to_run_config(), None)
    assert plain.images is not None
    np.testing.assert_array_equal(plain.labels, outcome.labels)
    # Weights are normalised at different places, which may move a number over the edge of a grey level.
    assert np.abs(plain.images.astype(int) - outcome.images).max() <= 1
    assert (plain.images == outcome.images).mean() > 0.99
