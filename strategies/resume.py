"""Continuing a run in its own folder, and the checkpoints that make it possible."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import ArrayRecord

from fedsynth import wire
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.output import RunFolder
from strategies.base import SynthesisStrategy, Task
from strategies.checkpoint import Checkpoint
from strategies.exchange import ExchangeGrid, Round, Traffic
from strategies.publish import Costs

logger = logging.getLogger("fedsynth")

FREE_KEYS = frozenset(
    {
        *("resume", "run-name", "output-dir", "state-dir", "data-root", "download", "device"),
        *("num-rounds", "train-steps"),
        *("node-timeout", "reply-timeout", "min-replies", "slice-seconds", "evaluate"),
    }
)
"""Keys that may differ when a run continues: where and how long it works, not what it computes in a round."""


def open_run(config: RunConfig) -> tuple[RunFolder, RunConfig, Checkpoint | None]:
    """Open the run folder that ``resume`` names.

    Returns:
        Folder, configuration with the record of what had been resolved, and the checkpoint; None before round 1 ended.

    Raises:
        UserError: no run folder, a damaged file, or a configuration that is not the run's.
    """
    folder = RunFolder.open(Path(config.run.resume))
    known = json.loads(folder.config.read_text())
    _refuse_changes(config, known["config"])
    checkpoint = Checkpoint.load(folder.checkpoints)
    last_round = checkpoint.round if checkpoint else 0
    rounds = config.run.num_rounds
    if rounds != "auto" and last_round > rounds:
        raise UserError(f"num-rounds = {rounds}: must be >= {last_round}, the rounds '{folder.path}' has finished")
    folder.keep_metrics(last_round)
    logger.info("resuming after round %d", last_round)
    return folder, config.model_copy(update={"resolved": tuple(known["resolved"])}), checkpoint


def _refuse_changes(config: RunConfig, known: dict[str, object]) -> None:
    for key, value in config.to_run_config().items():
        if key not in FREE_KEYS and known.get(key) != value:
            raise UserError(
                f"{key} = {value!r}: the run to resume has {known.get(key)!r}; give the same, or start another run"
                " ('fedsynth run --resume' takes over the run's configuration)"
            )


def continue_from(
    checkpoint: Checkpoint, strategy: SynthesisStrategy, task: Task, grid: ExchangeGrid
) -> tuple[ArrayRecord, Costs]:
    """Put strategy and costs where the checkpoint has them.

    Raises:
        UserError: other silos than before.
    """
    checkpoint.check_silos(task.census)
    strategy.resume(task, grid, checkpoint.strategy)
    costs = Costs(**checkpoint.costs)
    # What resuming itself sent comes on top.
    grid.traffic = Traffic(costs.bytes_down + grid.traffic.down, costs.bytes_up + grid.traffic.up)
    return wire.encode_tensors(checkpoint.arrays), costs


def checkpoint_writer(
    folder: RunFolder, strategy: SynthesisStrategy, task: Task, grid: ExchangeGrid, costs: Costs, start: float
) -> Callable[[Round], None]:
    """Return an observer that saves every round; ``start`` is ``time.monotonic()`` at the run's beginning."""
    silos = {member.name: member.label_counts for member in task.census}

    def write(done: Round) -> None:
        so_far = replace(
            costs,
            bytes_down=grid.traffic.down,
            bytes_up=grid.traffic.up,
            wall_seconds=time.monotonic() - start,
        )
        arrays = {name: wire.peek(array) for name, array in done.arrays.items()}
        Checkpoint(done.number, arrays, strategy.state_dict(), asdict(so_far), silos).save(folder.checkpoints)

    return write
