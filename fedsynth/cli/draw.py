"""Draw further labelled images from a saved model: models/generator or models/global of a run."""

from __future__ import annotations

import argparse

from fedsynth.cli.options import add_keys, path_of, refuse_rest
from fedsynth.config import keys_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the folder for the dataset, and how to sample."""
    parser.add_argument("model", type=path_of, help="diffusers folder of a class-conditional model, as a run leaves it")
    parser.add_argument("--output", type=path_of, required=True, help="folder for the dataset; must not exist")
    parser.add_argument("--classes", help="classes to draw, such as 'cat,dog' (default: all of the model's)")
    add_keys(parser, "MODEL --output FOLDER [--classes NAMES]", keys_of("draw"))


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Draw the images, as :func:`fedsynth.cli.drawing.draw` says."""
    refuse_rest("draw", rest)
    from fedsynth.cli.drawing import draw  # only here: --help would wait seconds for torch

    return draw(options)
