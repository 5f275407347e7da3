"""What ``fedsynth silo audit`` prints of a silo's ``audit.jsonl``."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedsynth.audit import AUDIT_FILE, AuditReport, RunTotals, read_audit
from fedsynth.chain import ChainReport
from fedsynth.errors import UserError
from fedsynth.progress import duration
from fedsynth.text import check_silo_name, folder_of_name, printable
from fedsynth.units import human_bytes

DESCRIPTION = """Print what every run asked of this silo, and check the chain of its audit: which line is altered,
missing, moved or put in. Exit status 1 if one is. The file alone cannot tell that its last lines were cut off, or that
all of it was written anew: note the head hash elsewhere from time to time, and give the one noted last with --head."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose audit, and what was noted of it."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--state-path",
        type=Path,
        help="the silo's --state-path (default: state in its folder), or a folder with a copy of audit.jsonl",
    )
    parser.add_argument("--silo-name", default="", help="the silo's name (default: the only one below the state path)")
    parser.add_argument("--head", default="", metavar="HASH", help="head hash noted earlier: must still be in the file")


def audit(folder: Path, options: argparse.Namespace) -> int:
    """Print the audit of a silo; return 1 if its chain is broken.

    Args:
        folder: the silo's.
        options: see :func:`add_arguments`.

    Raises:
        UserError: there is no such audit, or ``head`` is no hash.
    """
    if options.head and not re.fullmatch("[0-9a-f]{64}", options.head):
        raise UserError(f"head = '{options.head}': must be the 64 digits that 'fedsynth silo audit' printed as head")
    state = (options.state_path or folder / "state").expanduser().absolute()
    path = find_kept(AUDIT_FILE, state, options.silo_name)
    try:
        with path.open("rb") as file:
            report = read_audit(file, options.head)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    print(f"audit  {path}: {report.lines:,} line{'s' * (report.lines != 1)}")
    for line in (*_runs(report), *chain_lines(report)):
        print(printable(line))
    return int(report.num_problems > 0)


def find_kept(name: str, state: Path, silo: str) -> Path:
    """Return a file that a silo keeps.

    Args:
        name: of the file.
        state: the silo's state path, or a folder with a copy of the file.
        silo: name of the silo; empty: the only one that has such a file.

    Raises:
        UserError: there is none, or there are several.
    """
    if silo:
        check_silo_name(silo)
        path = state / folder_of_name(silo) / name
        if not path.is_file():
            raise UserError(f"there is no '{path}': the silo has answered nothing, or under another --silo-name")
        return path
    found = sorted([*state.glob(name), *state.glob(f"*/{name}")])
    if not found:
        raise UserError(
            f"there is no {name} below '{state}': the silo has answered nothing, or has another --state-path"
        )
    if len(found) > 1:
        names = ", ".join(printable(path.parent.name, 64) for path in found)
        raise UserError(f"several silos have a {name} below '{state}' ({names}): choose one with --silo-name")
    return found[0]


def _runs(report: AuditReport) -> Iterator[str]:
    for run, totals in report.runs.items():
        named = f" ({totals.strategy})" if totals.strategy else ""
        yield f"run    {run}{named}: {totals.first} to {totals.last}"
        yield from _run(totals)


def _run(totals: RunTotals) -> Iterator[str]:
    if totals.answered:
        yield f"         answered  {_listed(totals.answered)}"
    if totals.asked:
        yield f"         asked     {_listed(totals.asked)}"
    for word, reasons in (("refused", totals.refused), ("failed ", totals.failed)):
        for reason, count in reasons.items():
            yield f"         {word}   {count:,}: {reason}"
    crossed = f"{human_bytes(totals.bytes_in)} in, {human_bytes(totals.bytes_out)} out"
    yield f"         worked    {duration(totals.seconds)}; {crossed}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{word.removeprefix('query.').replace('-', ' ')} {count:,}" for word, count in counts.items())


def chain_lines(report: ChainReport) -> Iterator[str]:
    """Say whether a chain is whole, and where it ends."""
    for line in report.cut_lines:
        yield f"note   line {line} was cut short by a crash, as the next line says"
    yield from report.broken_lines()
    if not report.num_problems:
        yield "chain  whole: every line follows from the one before"
    if report.noted_line:
        yield f"noted  the hash noted earlier is that of line {report.noted_line:,}"
    advice = "" if report.num_problems else ": note it elsewhere"
    yield f"head   {report.head.hash} (entry {report.head.number:,}){advice}"
