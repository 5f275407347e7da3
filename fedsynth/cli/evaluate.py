"""Measure any labelled image folder against real images, made by fedsynth or not."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fedsynth.data import LabelledImages, load_dataset, read_image_folder
from fedsynth.errors import UserError
from fedsynth.evaluation import Evaluation, evaluate, results_rows
from fedsynth.files import write_json
from fedsynth.output import RunFolder, folder_names, results_table

logger = logging.getLogger("fedsynth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two folders, and how to measure."""
    parser.add_argument("dataset", type=Path, help="folder with one folder per class, or a run folder of fedsynth")
    parser.add_argument("--real", type=Path, required=True, help="real images: class folders, or train/ and test/")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: that of the real images)")
    parser.add_argument("--seed", type=int, default=0, help="decides splits, subsets and classifiers (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers (default: only print)")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the measures.

    Raises:
        UserError: a folder cannot be read, or the two do not fit each other.
    """
    if rest:
        raise UserError(f"unknown option '{rest[0]}'; 'fedsynth evaluate --help' lists all")
    train, test = load_dataset("imagefolder", options.real, image_size=options.image_size, seed=options.seed)
    synthetic = _read(options.dataset, train)
    evaluation = _measure(synthetic, train, test, options.seed)
    print(results_table(results_rows([evaluation])))
    for note in evaluation.notes:
        print(f"note: {note}")
    if options.output:
        write_json(options.output, evaluation.row())
        print(f"numbers {options.output}")
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


def _measure(synthetic: LabelledImages, train: LabelledImages, test: LabelledImages, seed: int) -> Evaluation:
    folds = (train.images, train.labels, test.images, test.labels)
    return evaluate(synthetic.images, synthetic.labels, *folds, len(train.classes), seed, progress=logger.info)
