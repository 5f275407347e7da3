"""The end of a run: dataset on disk, measured, reported."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from fedsynth import __version__
from fedsynth.diffusion import ClassConditionalDDPMPipeline, make_scheduler
from fedsynth.evaluation import Evaluation, evaluate
from fedsynth.files import atomic_directory
from fedsynth.output import RunFolder, SyntheticDataset, results_table, write_dataset, write_report
from fedsynth.wire import number
from strategies.base import Outcome, Task
from strategies.census import Census
from strategies.exchange import Round, Traffic
from strategies.summary import report_content, results_rows

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
    """

    rounds: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0
    wall_seconds: float = 0.0

    def add(self, done: Round) -> None:
        """Count one round."""
        self.rounds += 1
        self.client_seconds += number(done.metrics, "client-seconds", 0.0)

    def close(self, traffic: Traffic, census: Census, wall_seconds: float) -> None:
        """Add what is known at the end."""
        self.bytes_down, self.bytes_up, self.wall_seconds = traffic.down, traffic.up, wall_seconds
        self.client_seconds += sum(member.train_seconds for member in census)

    def row(self) -> dict[str, float]:
        """Return the numbers by kebab-case name."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


def publish(folder: RunFolder, task: Task, outcome: Outcome, costs: Costs) -> None:
    """Write dataset and model, measure the dataset, write results and report, and log where they are."""
    write_dataset(
        SyntheticDataset(outcome.images, outcome.labels, task.spec.classes, _provenance(task)), folder.synthetic
    )
    if outcome.unet is not None:
        _save_model(folder, task, outcome)
    evaluation = _measure(task, outcome)
    results = {"strategy": task.config.run.strategy, **costs.row(), **(evaluation.row() if evaluation else {})}
    folder.write_results(results)
    write_report(folder.report, report_content(task, outcome, costs.row(), evaluation, folder.read_metrics()))
    logger.info("results\n%s", results_table(results_rows(evaluation) if evaluation else costs.row()))
    logger.info("dataset %s", folder.synthetic)
    logger.info("report  %s", folder.report)


def _save_model(folder: RunFolder, task: Task, outcome: Outcome) -> None:
    scheduler = make_scheduler(task.config.diffusion)
    pipeline = ClassConditionalDDPMPipeline(outcome.unet, scheduler, task.spec.classes)
    with atomic_directory(folder.models / "global") as temporary:
        pipeline.save_pretrained(temporary)


def _measure(task: Task, outcome: Outcome) -> Evaluation | None:
    real = task.federation
    if not task.config.evaluation.evaluate or real is None:
        return None
    return evaluate(
        outcome.images,
        outcome.labels,
        real.train.images,
        real.train.labels,
        real.test.images,
        real.test.labels,
        len(task.spec.classes),
        task.config.run.seed,
        progress=logger.info,
    )


def _provenance(task: Task) -> dict[str, Any]:
    return {
        "method": task.config.run.strategy,
        "settings": task.config.to_run_config(),
        "silos": [member.name for member in task.census],
        "seed": task.config.run.seed,
        "software": {"fedsynth": __version__, **{name: version(name) for name in ("flwr", "torch", "diffusers")}},
    }
