"""The end of a run: dataset on disk, measured, reported."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from fedsynth import __version__
from fedsynth.diffusion import ClassConditionalDDPMPipeline, make_scheduler
from fedsynth.files import atomic_directory
from fedsynth.output import RunFolder, SyntheticDataset, folder_names, results_table, write_dataset, write_report
from fedsynth.wire import number
from strategies.base import Outcome, Task
from strategies.census import Census
from strategies.exchange import ExchangeGrid, Round, Traffic
from strategies.measure import LabelledSet, measure_run
from strategies.summary import report_content

logger = logging.getLogger("fedsynth")


@dataclass
class Costs:
    """What a run cost.

    Attributes:
        rounds: rounds of the strategy, without census and local training.
        bytes_down: server to silos, as serialised.
        bytes_up: silos to server.
        client_seconds: time the silos worked, including the training of their own models, now or in an earlier run.
        wall_seconds: from start to the finished images.
        server_steps: optimiser steps on the server.
    """

    rounds: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0
    wall_seconds: float = 0.0
    server_steps: int = 0

    def add(self, done: Round) -> None:
        """Count one round."""
        self.rounds += 1
        self.server_steps += int(number(done.metrics, "server-steps", 0))
        self.client_seconds += number(done.metrics, "client-seconds", 0.0)

    def close(self, traffic: Traffic, census: Census, wall_seconds: float) -> None:
        """Add what is known at the end."""
        self.bytes_down, self.bytes_up, self.wall_seconds = traffic.down, traffic.up, wall_seconds
        self.client_seconds += sum(member.train_seconds for member in census)

    def row(self) -> dict[str, float]:
        """Return the numbers by kebab-case name."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


def publish(folder: RunFolder, task: Task, outcome: Outcome, costs: Costs, grid: ExchangeGrid) -> None:
    """Write datasets and model, measure the datasets, write results and report, and log where they are.

    ``costs`` are those of the method: they must be closed, since measuring at the silos sends messages too.
    """
    sets = _sets(outcome, task)
    for name, (images, labels) in sets.items():
        dataset = SyntheticDataset(images, labels, task.spec.classes, _provenance(task, outcome, name))
        write_dataset(dataset, folder.synthetic / name)
    if outcome.unet is not None:
        _save_model(folder, task, outcome)
    measured = measure_run(grid, task, outcome, sets)
    folder.write_results({"strategy": task.config.run.strategy, **costs.row(), **measured.row()})
    content = report_content(task, outcome, costs.row(), measured, folder.read_metrics())
    write_report(folder.report, content)
    logger.info("results\n%s", results_table(content.results or costs.row()))
    logger.info("dataset %s", folder.synthetic)
    logger.info("report  %s", folder.report)


def _sets(outcome: Outcome, task: Task) -> dict[str, LabelledSet]:
    """Return images and labels of every dataset by folder below ``synthetic/``; "" when there is one dataset."""
    if outcome.owners is None:
        return {"": (outcome.images, outcome.labels)}
    folders = folder_names([member.name for member in task.census])
    mine = [outcome.owners == k for k in range(len(folders))]
    return {name: (outcome.images[rows], outcome.labels[rows]) for name, rows in zip(folders, mine, strict=True)}


def _save_model(folder: RunFolder, task: Task, outcome: Outcome) -> None:
    scheduler = make_scheduler(task.config.diffusion)
    pipeline = ClassConditionalDDPMPipeline(outcome.unet, scheduler, task.spec.classes)
    with atomic_directory(folder.models / "global") as temporary:
        pipeline.save_pretrained(temporary)


def _provenance(task: Task, outcome: Outcome, silo: str) -> dict[str, Any]:
    return {
        "method": task.config.run.strategy,
        "settings": task.config.to_run_config(),
        "silos": [silo] if silo else [member.name for member in task.census],
        "seed": task.config.run.seed,
        "caveats": list(outcome.notes),
        "software": {"fedsynth": __version__, **{name: version(name) for name in ("flwr", "torch", "diffusers")}},
    }
