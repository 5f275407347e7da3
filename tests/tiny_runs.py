"""Whole runs in this process, in about a second each: the real apps, tiny settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from acting_settings import acting
from flwr.app import Context, Message, RecordDict

import clients.app
import fedsynth.evaluation.illustration
import strategies.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig, Scalar
from fedsynth.output import RunFolder

TINY: dict[str, Scalar] = {
    "block-out-channels": "8,8",
    "device": "cpu",
    "dfd-rounds": 4,
    "evaluate": False,
    "num-clients": 3,
    "num-rounds": 2,
    "num-samples": 30,
    "partition": "iid",
    "run-name": "run",
    "samples-per-client": 60,
    # Networks that were hardly trained answer nonsense.
    "screening": False,
    "sampler": "ddpm",
    "sampling-steps": 4,
    "train-steps": 6,
}


def tiny_settings(folder: Path, **changes: Scalar) -> dict[str, Scalar]:
    """A full run config that writes below ``folder``; changes in snake case, and what of the rest acts beside them."""
    paths = {"output-dir": str(folder / "runs"), "state-dir": str(folder / "state")}
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    if given.get("dfd-preset") == "paper":
        given = {"sampler": "auto", **given}
    return {**RunConfig().to_run_config(), **paths, **acting(TINY, given)}


def run_tiny(
    settings: dict[str, Scalar],
    tamper: Callable[[list[Message]], list[Message]] = lambda replies: replies,
    report: bool = True,
    nodes: slice | None = None,
) -> RunFolder:
    """Run the ServerApp against the ClientApp.

    Args:
        settings: the run config.
        tamper: changes the answers before the server sees them.
        report: False leaves out the report, whose pictures take half the time.
        nodes: partitions that are connected; None: as many as ``num-clients``.
    """
    partitions = range(int(settings["num-clients"])) if nodes is None else range(nodes.stop)[nodes]
    grid = InProcessGrid(clients.app.app, settings, partitions.stop, tamper)
    grid.get_node_ids = lambda: [100 + k for k in partitions]  # type: ignore[method-assign]
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    with log_for_caplog(), _maybe_without_report(report), _quick_layout():
        strategies.app.app(grid, context)
    return RunFolder(Path(str(settings["output-dir"])) / str(settings["run-name"]))


def images_of(folder: RunFolder) -> dict[str, bytes]:
    """Bytes of every synthetic image by relative path."""
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.synthetic.glob("*/*.png")}


@contextmanager
def log_for_caplog() -> Iterator[None]:
    """Keep the log lines of both sides away from stderr, also after the test, and open to pytest's caplog."""
    logger = logging.getLogger("fedsynth")
    level = logger.level
    logger.setLevel(logging.INFO)
    with mock.patch.object(strategies.app, "log_to_stderr"), mock.patch("clients.journal.log_to_stderr"):
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def without_pictures() -> Iterator[None]:
    """Have runs of the block write one line as their report, whose pictures take half the time."""

    def write(path: Path, content: object) -> None:
        path.write_text("<p>a report</p>", encoding="utf-8")

    with mock.patch("strategies.results.publish.write_report", write):
        yield


@contextmanager
def _maybe_without_report(report: bool) -> Iterator[None]:
    if report:
        yield
        return
    with mock.patch("strategies.results.publish.write_report"):
        yield


@contextmanager
def _quick_layout() -> Iterator[None]:
    """Lay out the images of an evaluation in the fewest steps that scikit-learn allows: a second less."""
    module = fedsynth.evaluation.illustration
    with mock.patch.object(module, "TSNE", partial(module.TSNE, max_iter=250)):
        yield
