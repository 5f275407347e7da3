"""What ``fedsynth silo privacy`` prints of a silo's ``privacy.jsonl``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fedsynth.cli.deployment.silo_audit import chain_lines, find_kept
from fedsynth.errors import UserError
from fedsynth.files import damage_named
from fedsynth.policy import POLICY_FILE, SiloPolicy, read_policy
from fedsynth.text import printable

if TYPE_CHECKING:
    from fedsynth.privacy.spending import AccountReport, Spending

DESCRIPTION = """Print what was told of this silo's images and what was trained on them, the ε that all of it costs one
image more or less, and what the policy leaves. Exit status 1 if a line is altered, missing, moved or put in, or if the
account is not the one that the note beside the policy speaks of."""

_MOST_LINES = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose account, and under which policy."""
    parser.description = DESCRIPTION
    parser.add_argument("--state-path", type=Path, help="the silo's --state-path (default: state in its folder)")
    parser.add_argument("--silo-name", default="", help="the silo's name (default: the only one below the state path)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help=f"default: {POLICY_FILE} in the silo's folder")


def privacy(folder: Path, options: argparse.Namespace) -> int:
    """Print the privacy account of a silo; return 1 if it cannot be trusted.

    Args:
        folder: the silo's.
        options: see :func:`add_arguments`.

    Raises:
        UserError: there is no such account, or the policy cannot be read.
    """
    # Only here: what computes ε takes a second to import.
    from fedsynth.privacy.spending import ACCOUNT_FILE, note_file, spent_epsilon

    given = options.policy.expanduser() if options.policy else folder / POLICY_FILE
    policy = read_policy(given) if options.policy or given.exists() else SiloPolicy()
    state = (options.state_path or folder / "state").expanduser().absolute()
    path = find_kept(ACCOUNT_FILE, state, options.silo_name)
    note = note_file(given, path.parent.name)
    report = read_noted_account(path, note)
    print(f"account  {path}: {report.lines:,} line{'s' * (report.lines != 1)}")
    chain = [line.replace("the hash noted earlier", f"the hash in '{note}'") for line in chain_lines(report)]
    spent = spent_epsilon([one.mechanism for one in report.spendings], policy.privacy_delta)
    public = [one.public or one.mechanism for one in report.spendings]
    of_sums = any(one.public for one in report.spendings)
    towards = [_towards_public(spent_epsilon(public, policy.privacy_delta))] if of_sums and spent < math.inf else []
    for line in (*_spendings(report.spendings), *_budget(spent, policy), *towards, *chain):
        print(printable(line))
    return int(report.num_problems > 0)


def read_noted_account(path: Path, note: Path) -> AccountReport:
    """Return what a silo's privacy account says, its chain checked, also against the note beside the policy.

    Raises:
        UserError: account or note cannot be read.
    """
    from fedsynth.privacy.spending import read_account

    noted = _noted(note) if note.exists() else ""
    try:
        with path.open("rb") as file:
            return read_account(file, noted)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error


def _noted(note: Path) -> str:
    with damage_named(note, "gives up noticing that an older account was put in the place of this one"):
        return str(json.loads(note.read_text(encoding="utf-8"))["hash"])


def _spendings(spendings: Sequence[Spending]) -> Iterator[str]:
    from fedsynth.privacy.spending import described

    alike = [
        (key, list(several))
        for key, several in groupby(spendings, key=lambda one: (one.what, one.mechanism, one.data, one.run))
    ]
    if len(alike) > _MOST_LINES:
        yield f"       {len(alike) - _MOST_LINES:,} earlier entries are not shown"
    for (what, mechanism, data, run), several in alike[-_MOST_LINES:]:
        times = f"{len(several):,} times " if len(several) > 1 else ""
        yield f"spent  {several[-1].time}  {what:10}  {times}{described(mechanism)}; run {run}, images {data}"


def _towards_public(spent: float) -> str:
    return (
        f"       {spent:.4g} of it towards whoever sees only what secure sums led to; the ε above is towards a server"
        " that other silos help"
    )


def _budget(spent: float, policy: SiloPolicy) -> Iterator[str]:
    budget, delta = policy.limit("privacy_epsilon"), policy.privacy_delta
    if spent == math.inf:
        yield "ε      unbounded: see the entries without noise, or with little"
    else:
        yield f"ε      {spent:.4g} at δ = {delta:g}, all entries together, as to one image more or less"
    if budget == math.inf:
        yield "left   the policy sets no budget: 'privacy-epsilon = \"unlimited\"'"
    else:
        yield f"left   {max(0.0, budget - spent):.4g} of '{policy.line('privacy_epsilon')}'"
