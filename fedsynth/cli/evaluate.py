"""Measure any labelled image folder against real images, made by fedsynth or not."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fedsynth.cli.options import add_keys, given_keys
from fedsynth.config import AUTO, RunConfig
from fedsynth.data import LabelledImages, load_dataset, read_image_folder
from fedsynth.errors import UserError
from fedsynth.evaluation import Evaluation, Evaluator, ImageSet, Settings, results_rows
from fedsynth.files import write_json
from fedsynth.output import (
    ReportContent,
    RunFolder,
    explained,
    folder_names,
    measured_parts,
    results_table,
    write_report,
)

logger = logging.getLogger("fedsynth")

KEYS = frozenset(
    {
        *("seed", "image-size", "state-dir", "device", "feature-extractor", "feature-extractor-weights-path"),
        *("classifiers", "classifier-seeds", "resnet-weights-path"),
    }
)
"""Configuration keys that say how a dataset is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two folders, and how to measure."""
    parser.add_argument("dataset", type=Path, help="folder with one folder per class, or a run folder of fedsynth")
    parser.add_argument("--real", type=Path, required=True, help="real images: class folders, or train/ and test/")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers (default: only print)")
    parser.add_argument("--report", type=Path, help="HTML page with tables and pictures (shows real images)")
    add_keys(parser, KEYS)


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the measures.

    Raises:
        UserError: a folder cannot be read, or the two do not fit each other.
    """
    if rest:
        raise UserError(f"unknown option '{rest[0]}'; 'fedsynth evaluate --help' lists all")
    config = RunConfig.from_run_config(given_keys(options, KEYS))
    size = None if config.data.image_size == AUTO else config.data.image_size
    train, test = load_dataset("imagefolder", options.real, image_size=size, seed=config.run.seed)
    synthetic = _read(options.dataset, train)
    evaluation = _measure(synthetic, train, test, config, illustrated=options.report is not None)
    print(results_table(results_rows([evaluation])))
    for note in evaluation.notes:
        print(f"note: {note}")
    if options.output:
        write_json(options.output, evaluation.row())
        print(f"numbers {options.output}")
    if options.report:
        write_report(options.report, _report(options.dataset, synthetic, test, evaluation))
        print(f"report  {options.report}")
    return 0


def _read(path: Path, real: LabelledImages) -> LabelledImages:
    """Read the dataset in the format of the real images, under their class names."""
    inside = RunFolder(path).synthetic
    root = inside if inside.is_dir() else path
    _, size, _, channels = real.images.shape
    # Our datasets name their folders so that every reader understands them; real folders may be named otherwise.
    folders = folder_names(real.classes) if (root / "provenance.json").is_file() else real.classes
    data = read_image_folder(root, image_size=size, channels=channels, classes=folders)
    return LabelledImages(data.images, data.labels, real.classes)


def _measure(
    synthetic: LabelledImages, train: LabelledImages, test: LabelledImages, config: RunConfig, illustrated: bool
) -> Evaluation:
    evaluator = Evaluator(
        ImageSet("real training images", train.images, train.labels),
        ImageSet("real test images", test.images, test.labels),
        train.classes,
        config.run.seed,
        Settings.of(config),
        progress=logger.info,
    )
    return evaluator.evaluate(synthetic.images, synthetic.labels, illustrated)


def _report(path: Path, synthetic: LabelledImages, test: LabelledImages, evaluation: Evaluation) -> ReportContent:
    row, name, results = evaluation.row(), evaluation.main_classifier, results_rows([evaluation])
    return ReportContent(
        title=f"{path.name or path.resolve().name}, measured",
        explanation=f"{len(synthetic)} labelled synthetic images measured against {len(test)} real test images.",
        classes=synthetic.classes,
        synthetic_images=synthetic.images,
        synthetic_labels=synthetic.labels,
        headline={
            f"accuracy on real test images ({name.upper()} trained on synthetic)": row[f"accuracy-{name}"],
            "the same trained on real images": row[f"real-accuracy-{name}"],
            "coverage of real test images": row["coverage"],
        },
        results=results,
        real_images=test.images,
        real_labels=test.labels,
        limits=evaluation.notes,
        **explained(results),
        **measured_parts(evaluation),
    )
