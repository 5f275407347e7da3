"""Lay out a sweep as the tables of a paper: means with intervals over seeds, differences, costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsynth.cli.options import refuse_rest
from fedsynth.cli.sweeps.sweep_file import read_sweep
from fedsynth.cli.sweeps.sweep_manifest import MANIFEST, read_manifest
from fedsynth.cli.tables.run_groups import comparability_warnings
from fedsynth.cli.tables.sweep_rows import SweepRow, sweep_rows
from fedsynth.cli.tables.sweep_tables import as_csv, paper_tables, table_notes, trade_offs
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError, unknown_choice
from fedsynth.files import atomic_file
from fedsynth.output import png_bytes
from fedsynth.output.table_formats import latex, markdown

FORMATS = ("markdown", "csv", "latex")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sweep, and how and where it is written."""
    parser.add_argument("sweep", type=Path, help=f"folder of a sweep (it holds {MANIFEST}), or the sweep's TOML file")
    parser.add_argument("--format", default="markdown", help=f"one of {', '.join(FORMATS)} (default: markdown)")
    parser.add_argument("--against", metavar="ROW", help="add differences to this row, paired by seed")
    parser.add_argument("--output", type=Path, help="file for the tables; default: they are printed")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print or write the tables, and write pictures of quality against cost beside them.

    Raises:
        UserError: there is no such sweep, row or format, or the output cannot be written.
    """
    one_run = (options.sweep / "config.json").exists() and not (options.sweep / MANIFEST).exists()
    if one_run or any(Path(word).is_dir() for word in rest):
        raise UserError("table takes the folder of one sweep; for single runs: 'fedsynth compare RUN RUN ...'")
    refuse_rest("table", rest)
    if options.format not in FORMATS:
        raise unknown_choice("format", options.format, FORMATS)
    folder = options.sweep if options.sweep.is_dir() else read_sweep(options.sweep).folder
    rows = sweep_rows(folder, read_manifest(folder))
    text = _text(rows, _chosen(rows, options.against), options.format)
    output: Path | None = options.output
    if output is None:
        print(text, end="")
        pictures = folder / "figures"
    else:
        if output.is_dir():
            raise UserError(f"cannot write the tables to '{output}': it is a folder; give the name of a file")
        with explained_writing(output), atomic_file(output) as file:
            file.write_text(text, encoding="utf-8")
        print(f"tables   {output}")
        pictures = output.parent / f"{output.stem}-figures"
    for name, figure in trade_offs(rows).items():
        with explained_writing(pictures), atomic_file(pictures / f"{name}.png") as file:
            file.write_bytes(png_bytes(figure))
    return 0


def _chosen(rows: Sequence[SweepRow], label: str | None) -> SweepRow | None:
    known = {row.label: row for row in rows}
    if label is not None and label not in known:
        raise unknown_choice("row", label, known)
    return known[label] if label is not None else None


def _text(rows: Sequence[SweepRow], against: SweepRow | None, kind: str) -> str:
    if kind == "csv":
        return as_csv(rows, against)
    begun = [row for row in rows if row.begun or row is against] or rows
    waiting = ", ".join(row.label for row in rows if row not in begun)
    rows = begun
    warnings = comparability_warnings([row.group for row in rows if row.group.runs])
    left_out = [f"no run of these rows has been started: {waiting}"] if waiting else []
    notes = [*table_notes(rows), *left_out, *warnings]
    return (latex if kind == "latex" else markdown)(paper_tables(rows, against), notes)
