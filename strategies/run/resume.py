"""Continuing a run in its own folder, and the checkpoints that make it possible."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import ArrayRecord

from fedsynth.config import KEYS, RunConfig, Scalar
from fedsynth.errors import UserError
from fedsynth.messages import transport
from fedsynth.output import RunFolder
from strategies.base import SynthesisStrategy, Task
from strategies.conversation.exchange import Exchange, Traffic
from strategies.run.checkpoint import Checkpoint
from strategies.run.costs import Costs
from strategies.run.rounds import Round

logger = logging.getLogger("fedsynth")


def open_run(config: RunConfig, strategy: SynthesisStrategy) -> tuple[RunFolder, RunConfig, Checkpoint | None]:
    """Open the run folder that ``resume`` names, and change nothing there.

    Returns:
        Folder, configuration as the run would have it without an interruption, and the checkpoint; None before round
        1 ended.

    Raises:
        UserError: no run folder, a damaged file, or a configuration that is not the run's.
    """
    folder = RunFolder.open(Path(config.run.resume).absolute())
    fixed = _fixed_besides(config, strategy)
    folder.refuse_changes(config.to_run_config(), fixed)
    checkpoint = Checkpoint.load(folder.checkpoints)
    if checkpoint is not None:
        checkpoint.check_settings(folder.read_config().to_run_config())
    rounds, finished = strategy.num_rounds, checkpoint.round if checkpoint else 0
    if not fixed and finished > rounds:
        raise UserError(f"num-rounds = {rounds}: must be >= {finished}, the rounds '{folder.path}' has finished")
    folder.read_metrics()  # if they are damaged, say so before a silo works
    logger.info("resuming after round %d", finished)
    return folder, _as_if_uninterrupted(config, folder), checkpoint


def _fixed_besides(config: RunConfig, strategy: SynthesisStrategy) -> tuple[str, ...]:
    """Return the keys that may not change although others of their kind may."""
    # Without rounds to add, the length of the training is that of the silos' own models. And private steps that were
    # spread over other rounds would be others than those that the noise is for.
    added = "num-rounds" in strategy.defaults(config) and strategy.rounds_can_be_added and not config.private
    return () if added else ("num-rounds", "train-steps")


def _fixed_settings(config: RunConfig, strategy: SynthesisStrategy) -> dict[str, Scalar]:
    fixed = _fixed_besides(config, strategy)
    flat = config.to_run_config()
    return {key: value for key, value in flat.items() if key in fixed or not KEYS[key].may_change}


def _as_if_uninterrupted(config: RunConfig, folder: RunFolder) -> RunConfig:
    place = {"resume": "", "run_name": folder.path.name, "output_dir": str(folder.path.parent)}
    known, flat = folder.read_config(), config.to_run_config()
    resolved = tuple(key for key in known.resolved if flat[key] == known.to_run_config()[key])
    return config.model_copy(update={"run": config.run.model_copy(update=place), "resolved": resolved})


def continue_from(
    checkpoint: Checkpoint, strategy: SynthesisStrategy, task: Task, exchange: Exchange
) -> tuple[ArrayRecord, Costs]:
    """Put strategy and costs where the checkpoint has them, and empty its arrays into the record that is returned."""
    strategy.resume(task, exchange, checkpoint.strategy)
    costs = Costs.restored(checkpoint.costs)
    # What resuming itself sent comes on top.
    exchange.traffic = Traffic(costs.bytes_down + exchange.traffic.down, costs.bytes_up + exchange.traffic.up)
    # Those of the checkpoint would stay in memory as long as it does.
    arrays = {name: transport.encode(checkpoint.arrays.pop(name)) for name in list(checkpoint.arrays)}
    return strategy.on_disk(transport.record_of(arrays)), costs


def checkpoint_writer(
    folder: RunFolder, strategy: SynthesisStrategy, task: Task, exchange: Exchange, costs: Costs, start: float
) -> Callable[[Round], None]:
    """Return an observer that saves every round; ``start`` is ``time.monotonic()`` at the run's beginning."""
    silos = {member.name: member.label_counts for member in task.census}
    settings = _fixed_settings(task.config, strategy)

    def write(done: Round) -> None:
        so_far = replace(
            costs,
            bytes_down=exchange.traffic.down,
            bytes_up=exchange.traffic.up,
            wall_seconds=time.monotonic() - start,
        )
        arrays = {name: transport.peek(array) for name, array in done.arrays.items()}
        Checkpoint(done.number, arrays, strategy.state_dict(), asdict(so_far), silos, settings).save(folder.checkpoints)

    return write
