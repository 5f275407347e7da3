"""Check what a run with certificates claims, from its folder and the silos' public keys alone.

Prints every round with its roster, its signers and who dissented, and the head of the chain. Exit status 1 if anything
does not hold; what, and where, is said. Needs no network.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedsynth.errors import UserError
from fedsynth.output.audit_files import LOG
from fedsynth.text import printable

if TYPE_CHECKING:
    from fedsynth.output import RunFolder
    from fedsynth.replicas.audit import RunAudit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, whose keys."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--keys",
        type=Path,
        required=True,
        metavar="FILE",
        help="public keys of all silos and aggregators (silo-keys.json), from a source that you trust; of simulated"
        " ones RUN/audit/keys.json",
    )
    parser.add_argument("--head", default="", metavar="HASH", help="head of the chain noted earlier: must be reached")
    parser.add_argument("--ledger-url", default="", metavar="URL", help="Ethereum node that has the heads, too")
    parser.add_argument("--ledger-contract", default="", metavar="ADDRESS", help="contract that holds them there")
    parser.add_argument(
        "--recompute", action="store_true", help="also compute the first weights and draw the dataset anew"
    )


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the audit; return 1 if something does not hold."""
    from fedsynth.cli.audited_ledger import check_heads, ledger_to_ask
    from fedsynth.cli.auditing import audited, recomputed
    from fedsynth.output import RunFolder

    if rest:
        raise UserError(f"unknown argument '{rest[0]}'")
    ledger = ledger_to_ask(options.ledger_url, options.ledger_contract)
    if options.head and not re.fullmatch("[0-9a-f]{64}", options.head):
        raise UserError(f"head = '{options.head}': must be the 64 digits that 'fedsynth audit' printed as head")
    folder = RunFolder.open(options.run)
    if not (folder.audit / LOG).is_file():
        raise UserError(f"'{folder.path}' has no {folder.audit.name}/{LOG}: it was run with aggregators = 'server'")
    report = audited(folder, options.keys)
    if options.head and options.head not in report.certificates.seen.values():
        report.complain("the head noted earlier is in no certificate: rounds were cut off, or all was made anew")
    noted = [recomputed(folder, report)] if options.recompute else []
    noted += [] if ledger is None else [check_heads(report, ledger)]
    for line in [*_lines(folder, report), *filter(None, noted)]:
        print(printable(line, 2000))
    return int(report.num_problems > 0)


def _lines(folder: RunFolder, report: RunAudit) -> Iterator[str]:
    parties = report.parties
    yield f"run    {parties.run or 'no certificate'}, {report.rule or 'no rule'} in '{folder.path.name}'"
    beside = "" if parties.aggregators == parties.silos else f" and {len(parties.aggregators)} aggregators"
    yield f"keys   {len(parties.silos)} silos{beside}, SHA-256 {parties.keys_hash}"
    yield f"quorum {parties.quorum} of {len(parties.aggregators)} aggregators ({parties.rule})"
    for number in sorted(report.rounds):
        said = report.rounds[number]
        silos = ", ".join(f"{name} ({images})" for name, images in said.roster.items())
        if said.signers:
            yield f"round  {number}: {silos}; signed by {', '.join(said.signers)}"
        else:
            yield f"round  {number}: VOID, {said.why_void or 'no certificate'}"
        for name, why in said.dissent.items():
            yield f"         dissent: {name} {why}"
        for name in sorted(said.twice):
            yield f"         twice: {name} signed two different updates"
    yield from report.broken_lines()
    if not report.num_problems:
        certified = "last level" if report.rule == "dfd" else "final model"
        yield f"holds  every line, signature, roster, the {certified} and every file of the run"
    yield f"head   {report.certificates.head} (round {report.certificates.round})"
