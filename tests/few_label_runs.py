"""Runs from few labels in this process, whose silos' labels can be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import clients.context
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from strategies.run.rounds import Round

FEW: dict[str, Scalar] = {"labelled_fraction": 0.4, "num_clients": 3, "num_rounds": 1, "classifier_rounds": 1}


def begin(state: Path, given: dict[str, Any], labelled: Any = None, *observers: Callable[[Round], None]) -> Any:
    """Begin and end a run, with the silos' labels changed by ``labelled``; return its begin and its outcome."""
    flat = {key.replace("_", "-"): value for key, value in given.items()} | {"state-dir": str(state)}
    federation = load_federation(RunConfig.from_run_config(flat))
    if labelled is not None:
        federation = dataclasses.replace(federation, **labelled(federation))
    with mock.patch.object(clients.context, "_federation", return_value=federation):
        started = begin_run(flat, federation)
        return started, started.strategy.finish(started.task, started.rounds(*observers))


TINY: dict[str, Scalar] = {
    **FEW,
    **{"strategy": "ddsa", "partition": "iid", "block_out_channels": "8,8", "layers_per_block": 1, "batch_size": 4},
    **{"samples_per_client": 40, "num_samples": 20, "sampling_steps": 2, "train_steps": 1, "classifier_steps": 1},
}
