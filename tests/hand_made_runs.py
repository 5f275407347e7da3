"""Run folders as runs leave them, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsynth.config import RunConfig, Scalar
from fedsynth.files import nonfinite_as_null
from fedsynth.output import RunFolder, SyntheticDataset, write_dataset

MEASURED = {"n": 360, "k": 5, "feature-space": "domain-classifier", "n-train": 1000}
COST = {"rounds": 25, "bytes-up": 34_000_000, "bytes-down": 35_000_000, "client-seconds": 300.0, "wall-seconds": 90.0}


def make_run(
    root: Path,
    name: str,
    results: Mapping[str, Any] | None,
    resolved: tuple[str, ...] = (),
    classes: tuple[str, ...] = ("a", "b"),
    **changes: Scalar,
) -> Path:
    """A run folder as a run leaves it; ``results`` None: one that was killed. Changes of the config in snake case."""
    folder = RunFolder.create(root, name)
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    config = RunConfig.from_run_config({"run-name": name, "output-dir": str(root), **given})
    folder.write_config({"config": config.to_run_config(), "resolved": list(resolved)})
    for number in (1, 2, 3):
        folder.append_metrics({"round": number, "loss": 1 / number + config.run.seed, "bytes-up": 10 * number})
    if results is not None:
        images = np.full((4, 8, 8, 1), 100, np.uint8)
        dataset = SyntheticDataset(images, np.array([0, 0, 1, 1]), classes, {})
        write_dataset(dataset, folder.synthetic)
        folder.write_results(nonfinite_as_null({"strategy": config.run.strategy, **COST, **results}))
    return folder.path


def measured(distance: float, accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    return {**MEASURED, "frechet-distance": distance, "accuracy-mlp": accuracy, "notes": "few images", **given}
