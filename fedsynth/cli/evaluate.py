"""Measure any labelled image folder against real images, made by fedsynth or not."""

from __future__ import annotations

import argparse

from fedsynth.cli.options import add_keys, path_of, refuse_rest
from fedsynth.config import keys_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two folders, and how to measure."""
    parser.add_argument("dataset", type=path_of, help="folder with one folder per class, or a run folder of fedsynth")
    parser.add_argument(
        "--real",
        type=path_of,
        required=True,
        help="real images: class folders, or train/ and test/; all these in silos' folders, too",
    )
    parser.add_argument("--output", type=path_of, help="JSON file for the numbers (default: only print)")
    parser.add_argument("--report", type=path_of, help="HTML page with tables and pictures (shows real images)")
    add_keys(parser, "DATASET --real FOLDER [--output FILE] [--report FILE]", keys_of("evaluate"))


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Measure, as :func:`fedsynth.cli.evaluating.evaluate` says."""
    refuse_rest("evaluate", rest)
    from fedsynth.cli.evaluating import evaluate  # only here: --help would wait seconds for torch

    return evaluate(options)
