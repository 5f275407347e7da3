"""The end of a run: dataset on disk, measured, reported."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsynth import __version__
from fedsynth.config import RunConfig, published_settings
from fedsynth.diffusion import codec_of, lasting_scheduler, model_seal, save_model, start_of
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.evaluation import SPREAD, SPREAD_LEGEND
from fedsynth.files import atomic_directory, nonfinite_as_null
from fedsynth.output import (
    RunFolder,
    SyntheticDataset,
    describe_dataset,
    folder_names,
    terminal_table,
    write_classifier,
    write_dataset,
    write_report,
)
from fedsynth.output.audit_files import list_files
from fedsynth.privacy.statement import privacy_statement
from fedsynth.progress import duration
from fedsynth.sealed import seal_folder
from strategies.base import Outcome, Task
from strategies.conversation.audit_log import AuditLog
from strategies.conversation.exchange import Exchange
from strategies.results.generator import FOLDER, SAMPLER, generator_note, train_generator
from strategies.results.measure import LabelledSet, Measurements, measure_run
from strategies.results.summary import report_content
from strategies.run.costs import Costs
from strategies.run.opening import found_settings
from strategies.run.phases import Phases

logger = logging.getLogger("fedsynth")

CLASSIFIER = "classifier"
"""Folder of the silos' classifier below ``models/``."""


def publish(
    folder: RunFolder, task: Task, outcome: Outcome, costs: Costs, exchange: Exchange, how: str, phases: Phases
) -> None:
    """Write datasets and models, measure them, write results and report, and log where they are.

    ``costs`` are those of the method: they must be closed, since measuring at the silos sends messages too. ``phases``
    are those of this process: of a continued run, since it was continued.
    """
    outcome = replace(outcome, notes=(*outcome.notes, *generator_note(task.config), *_start_note(task.config)))
    sets = _sets(outcome, task)
    datasets = {
        name: SyntheticDataset(images, labels, task.spec.classes, _provenance(task, outcome, name))
        for name, (images, labels) in sets.items()
    }
    for name, dataset in datasets.items():
        write_dataset(dataset, folder.synthetic / name)
    _save_models(folder, task, outcome)
    if task.config.sampling.generator_steps:
        phases.enter("generator")
    generator = train_generator(task, outcome, folder.checkpoints)
    if generator is not None:
        _save_model(folder.models / FOLDER, task, generator.unet, SAMPLER)
    phases.enter("evaluation")
    measured = measure_run(exchange, task, outcome, sets, generator)
    cost = {**costs.row(), **(generator.cost() if generator else {})}
    phases.enter("report")
    seconds = phases.seconds()
    guarantee = privacy_statement(task.config)
    promised = guarantee.row() if guarantee else {}
    results = {**cost, **promised, "seconds-by-phase": seconds, **outcome.measures, **measured.row()}
    folder.write_results({"strategy": task.config.run.strategy, **results})
    shown = {**cost, **{f"{phase}-seconds": spent for phase, spent in seconds.items()}}
    content = report_content(task, outcome, how, shown, measured, folder.read_metrics())
    for name, dataset in datasets.items():
        found = _quality(measured, name) | ({"verdict": content.verdict} if len(datasets) == 1 else {})
        describe_dataset(replace(dataset, provenance={**dataset.provenance, **found}), folder.synthetic / name)
    write_report(folder.report, content)
    logger.info("results")
    for line in terminal_table(content.results or cost).split("\n"):
        logger.info("%s", line)
    if any(SPREAD in row for row in content.results.values()):
        logger.info("%s", SPREAD_LEGEND)
    logger.info("%s", content.verdict)
    logger.info("time: %s", ", ".join(f"{phase} {duration(spent)}" for phase, spent in phases.so_far().items()))
    logger.info("dataset %s", folder.synthetic)
    if generator is not None:
        logger.info("generator %s", folder.models / FOLDER)
    logger.info("report  %s", folder.report)
    if task.audit is not None:
        head = str(outcome.certified["head"])
        AuditLog(task.audit).add("published", files=list_files(folder.path, task.audit), head=head)
        logger.info("audit   %s: 'fedsynth audit' checks it; the head to note elsewhere is %s", task.audit, head)


def _start_note(config: RunConfig) -> tuple[str, ...]:
    start = start_of(config)
    if start is None:
        return ()
    return (
        f"Training started from a {start.noun} (SHA-256 {start.digest}): what these images show may be of the images"
        " that it was trained on, and nothing here is said of those.",
    )


def _sets(outcome: Outcome, task: Task) -> dict[str, LabelledSet]:
    """Return images and labels of every dataset by folder below ``synthetic/``; "" when there is one dataset."""
    if outcome.owners is None:
        return {"": (outcome.images, outcome.labels)}
    found = {}
    for k, name in enumerate(_shown_names(task)):
        mine = outcome.owners == k
        # A silo that failed has no set.
        if mine.any():
            found[name] = (outcome.images[mine], outcome.labels[mine])
    return found


def _shown_names(task: Task) -> dict[str, str]:
    """Return the name of every silo as a reader knows it, by the folder of its set."""
    return dict(zip(folder_names([member.name for member in task.census]), task.shown_names, strict=True))


def _save_models(folder: RunFolder, task: Task, outcome: Outcome) -> None:
    """Write the models that the silos trained together."""
    if outcome.unet is not None:
        _save_model(folder.models / "global", task, outcome.unet)
    if outcome.classifier:
        path, provenance = folder.models / CLASSIFIER, _provenance(task, outcome, "")
        write_classifier(path, outcome.classifier, task.spec, provenance, outcome.measures)
        logger.info("classifier %s", path)


def _save_model(path: Path, task: Task, unet: Denoiser, sampler: str = "ddpm") -> None:
    codec = codec_of(task.config, task.spec)
    scheduler = lasting_scheduler(task.config.recipe, sampler, codec.bound)
    with atomic_directory(path) as temporary:
        save_model(temporary, unet, scheduler, codec, task.spec.classes)
        seal_folder(temporary, model_seal())


def _quality(measured: Measurements, name: str) -> dict[str, Any]:
    """Return what was measured of one of the datasets."""
    evaluations = {name: measured.evaluations[name]} if name in measured.evaluations else {}
    rows = replace(measured, evaluations=evaluations).table()
    return {"quality": nonfinite_as_null(rows)} if rows else {}


def _provenance(task: Task, outcome: Outcome, silo: str) -> dict[str, Any]:
    guarantee = privacy_statement(task.config)
    return {
        "method": task.config.run.strategy,
        "license": task.config.run.license,
        "settings": published_settings(task.config, found_settings(task.config, task.spec)),
        "codec": codec_of(task.config, task.spec).digest,
        **({"start": start.digest} if (start := start_of(task.config)) else {}),
        "silos": [_shown_names(task)[silo]] if silo else list(task.shown_names),
        "seed": task.config.run.seed,
        "caveats": list(outcome.notes),
        **({"privacy": guarantee.facts()} if guarantee else {}),
        **({"certified": dict(outcome.certified)} if outcome.certified else {}),
        "software": {"fedsynth": __version__, **{name: version(name) for name in ("flwr", "torch", "diffusers")}},
    }
