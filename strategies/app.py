"""The ServerApp: parse the configuration, count the silos, run the rounds, publish the dataset."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.utils import logging as diffusers_logging
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsynth.config import AUTO, REAL_SILOS, RunConfig, Scalar, published_settings
from fedsynth.data import Federation, load_federation
from fedsynth.diffusion import codec_of, settle_base_model, start_of
from fedsynth.disk import is_forbidden
from fedsynth.errors import RunError, UserError
from fedsynth.files import nonfinite_as_null
from fedsynth.logs import log_to_stderr
from fedsynth.output import RunFolder, default_name
from fedsynth.policy import plan_of
from fedsynth.progress import Progress
from fedsynth.seeding import make_generator
from fedsynth.tracking import check_tracker
from strategies import build_strategy
from strategies.base import SynthesisStrategy, Task
from strategies.conversation.aggregators import meet_aggregators
from strategies.conversation.agreement import agree
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.fast_replies import take_replies_fast
from strategies.conversation.meeting import take_census
from strategies.conversation.noted_heads import check_ledger
from strategies.conversation.permission import check_policies, leave_out_rare_classes
from strategies.results.publish import publish
from strategies.run.checkpoint import Checkpoint
from strategies.run.costs import Costs
from strategies.run.opening import check_images, check_partition, found_settings, load_reference, write_partition
from strategies.run.phases import Phases
from strategies.run.resume import checkpoint_writer, continue_from, open_run
from strategies.run.rounds import Round, run_rounds
from strategies.run.status import StatusWriter
from strategies.run.tracking import Tracking, tracked

logger = logging.getLogger("fedsynth")
app = ServerApp()

M_MMAP_THRESHOLD = -3
"""Name of the limit in glibc's ``mallopt``."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one synthesis from configuration to report."""
    log_to_stderr()
    _return_freed_memory()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    with _errors_logged():
        config = RunConfig.from_run_config(context.run_config)
    run_synthesis(grid, config)


@contextlib.contextmanager
def _errors_logged() -> Iterator[None]:
    try:
        yield
    except (UserError, RunError) as error:
        logger.error("error: %s", error)
        raise


def run_synthesis(grid: Grid, config: RunConfig) -> RunFolder:
    """Run one synthesis with the silos of a grid, and return the folder that holds everything it left.

    Raises:
        UserError: the configuration, the images or the folder cannot be used; before any silo works.
        RunError: too few usable answers.
    """
    with _errors_logged():
        check_tracker(config.run.tracker)
        check_ledger(config.replicas)
        if config.exchange.fast_replies:
            take_replies_fast()
        strategy, config = build_strategy(settle_base_model(config))
        federation = None if config.data.dataset == REAL_SILOS else load_federation(config)
        if federation is not None:
            check_images(config, federation.spec)
        folder, config, checkpoint = open_run(config, strategy) if config.run.resume else _new_run(config)
    exchange = Exchange(grid, config.exchange.reply_timeout)
    status = StatusWriter(folder, exchange.reply_log, strategy.num_rounds, checkpoint.round if checkpoint else 0)
    with folder.log_to_file(logger), _errors_logged(), status.kept():
        logger.info("run folder %s", folder.path)
        if federation is not None:
            logger.info("images: %s", federation.describe_images(config))
            logger.info("split: %s", federation.describe_split(config))
        if federation is not None and (said := federation.describe_silos()):
            logger.info("natural silos: %s", said)
        if federation is not None and (said := federation.describe_duplicates()):
            logger.info("images: %s", said)
        strategy.summary()
        if checkpoint is None:
            _prepare_folder(folder, config, 0)
            status.begin()
        try:
            with tracked(folder, config.run.tracker) as tracking:
                _synthesise(strategy, exchange, config, federation, folder, checkpoint, status, tracking)
        finally:
            folder.remove_spool()
    return folder


def _synthesise(
    strategy: SynthesisStrategy,
    exchange: Exchange,
    config: RunConfig,
    federation: Federation | None,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    status: StatusWriter,
    tracking: Tracking,
) -> None:
    start, phases = time.monotonic(), Phases()
    task = _meet_silos(exchange, config, federation, checkpoint)
    task.audit, task.spool = folder.audit if config.replicated else None, folder.spool
    phases.enter("training")
    found = found_settings(config, task.spec)
    if checkpoint is None:
        folder.record_config(config, found)
        write_partition(folder, task)
        arrays, costs, first = strategy.begin(task, exchange), Costs(), 1
    else:
        checkpoint.check_silos(task.census)
        check_partition(folder, task)
        status.begin()
        write_partition(folder, task)
        _prepare_folder(folder, config, checkpoint.round, found)
        arrays, costs = continue_from(checkpoint, strategy, task, exchange)
        first = checkpoint.round + 1
        start -= costs.wall_seconds
    tracking.settings(published_settings(config, found))
    observers = [
        _metrics_writer(folder, exchange, costs, tracking),
        _progress(strategy, first - 1),
        status.observe(strategy),
        checkpoint_writer(folder, strategy, task, exchange, costs, start),
        lambda done: tracking.picture(strategy, task, done.number, done.arrays),
    ]
    phases.enter("rounds")
    arrays = run_rounds(strategy, exchange, arrays, observers, first)
    phases.enter("sampling")
    outcome = strategy.finish(task, arrays)
    costs.close(exchange.traffic, task.census, time.monotonic() - start)
    publish(folder, task, outcome, costs, exchange, strategy.how, phases)
    tracking.finish(outcome.curves)


def _prepare_folder(
    folder: RunFolder, config: RunConfig, rounds: int, found: Mapping[str, Scalar] | None = None
) -> None:
    """Write the settings and drop what an interruption left behind after the last saved round."""
    folder.record_config(config, found)
    folder.keep_metrics(rounds)
    folder.remove_torn_files()


def _new_run(config: RunConfig) -> tuple[RunFolder, RunConfig, None]:
    name = config.run.run_name
    if name == AUTO:
        name = default_name(config.run.strategy, config.data.dataset, config.run.seed, datetime.now())
    root, here = Path(config.run.output_dir).absolute(), Path("runs").absolute()
    try:
        return RunFolder.create(root, name), config, None
    except UserError as error:
        # A path of the machine, or the user, that started the run: this is the SuperLink's.
        if config.data.dataset != REAL_SILOS or not is_forbidden(error.__cause__) or root == here:
            raise
        logger.warning("%s; the run folder lies in '%s' instead", error, here)
    run = config.run.model_copy(update={"output_dir": str(here)})
    return RunFolder.create(here, name), config.model_copy(update={"run": run}), None


def _meet_silos(
    exchange: Exchange, config: RunConfig, federation: Federation | None, checkpoint: Checkpoint | None
) -> Task:
    log = exchange.reply_log
    reference, policies = None, None
    stated, beside = "num-clients", ""
    if config.num_aggregators:
        stated, beside = "num-clients + num-aggregators", f" and {config.num_aggregators} aggregators"
    logger.info("waiting for %d silos%s", config.run.num_clients, beside)
    nodes = exchange.wait_for_nodes(config.num_nodes, config.exchange.node_timeout, stated)
    aggregators = meet_aggregators(exchange, config) if config.num_aggregators else None
    others = {member.node_id: member.name for member in aggregators or ()}
    nodes = [node for node in nodes if node not in others]
    if federation is None:
        log.names, spec, policies = agree(exchange, config, checkpoint.silos if checkpoint else None, others)
        check_images(config, spec)
        check_policies(policies, config, spec)
        nodes, reference = list(log.names), load_reference(config, spec)
    else:
        spec = federation.spec
    names = log.names if federation is None else None
    codec, start = codec_of(config, spec).digest, start_of(config)
    if start is not None:
        logger.info("networks start from a %s, SHA-256 %s", start.noun, start.digest)
    if start is not None and (known := start.known(spec.classes)) is not None:
        logger.info("classes that it knows: %s", ", ".join(known) or "none")
    most, digest = config.exchange.max_silo_images, start.digest if start else None
    least = int(config.settings.labels_everywhere)
    census = take_census(exchange, nodes, spec, most, names, codec, digest, least)
    log.names = {member.node_id: member.name for member in census} | others
    for member in census:
        logger.info("%s: %d images to train on, per class %s", member.name, member.num_examples, member.label_counts)
    if policies is not None and {"epsilon", "sample"} & {*plan_of(config, spec).answers}:
        leave_out_rare_classes(policies, census, spec)
    labels = draw_labels(config, census)
    if policies is not None:
        check_policies(policies, config, spec, census, labels)
    return Task(config, spec, census, labels, federation, reference, policies or {}, aggregators=aggregators)


def draw_labels(config: RunConfig, census: Census) -> torch.Tensor:
    """Return the class of every synthetic image, int64 (N,): equal shares, or the silos' shares, in mixed order."""
    num_samples, counts = config.sampling.num_samples, census.label_counts.sum(0)
    if config.sampling.labels == "balanced":
        return torch.arange(num_samples) % len(counts)
    generator = make_generator(config.run.seed, "labels")
    return torch.multinomial(counts.double(), num_samples, replacement=True, generator=generator)


def _metrics_writer(folder: RunFolder, exchange: Exchange, costs: Costs, tracking: Tracking) -> Callable[[Round], None]:
    def write(done: Round) -> None:
        costs.add(done)
        traffic = {"bytes-down": exchange.traffic.down, "bytes-up": exchange.traffic.up}
        # A strategy may have measured what is not defined in this round.
        measured = nonfinite_as_null(dict(done.metrics))
        row = {"round": done.number, **measured, **traffic, "seconds": done.seconds, **_silos(exchange)}
        folder.append_metrics(row)
        tracking.round(row)

    return write


def _silos(exchange: Exchange) -> dict[str, Any]:
    """What the silos did in a round, if it asked any."""
    row = exchange.reply_log.row()
    return {"attendance": row} if row else {}


def _progress(strategy: SynthesisStrategy, rounds_done: int) -> Callable[[Round], None]:
    progress = Progress("round", strategy.num_rounds, logger.info, done=rounds_done)
    shown = ("loss", "effective-experts")

    def report(done: Round) -> None:
        progress.total = strategy.num_rounds
        progress.update(
            done.number, **{key: float(cast(float, done.metrics[key])) for key in shown if key in done.metrics}
        )

    return report


def _return_freed_memory() -> None:
    """Have glibc give freed blocks of 4 MB and more back at once; it would keep up to 32 MB of each for later."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
