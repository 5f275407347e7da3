"""``silo status``: how a silo stands, from what its own folder holds. Nobody is asked, and nothing is written."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsynth.audit import AUDIT_FILE, AuditReport, read_audit
from fedsynth.cli.deployment import silo_settings
from fedsynth.cli.deployment.app import program_digest
from fedsynth.cli.deployment.silo_connection import CONNECTION_FILE, SILO_LOCK, Connection, read_connection
from fedsynth.errors import UserError
from fedsynth.ledger import LEDGER_FILE, read_ledger
from fedsynth.locks import is_held
from fedsynth.policy import POLICY_FILE, SiloPolicy, read_policy
from fedsynth.policy.ceilings import CEILINGS
from fedsynth.progress import ago, duration
from fedsynth.text import folder_of_name, printable

_Told = Callable[[str], str]

DESCRIPTION = """Say how this silo stands: link, policy, program, the last run that asked and what was answered, what is
left of the policy's ceilings. Read from the silo's own files; neither link nor server is asked. Exit status 1 if the
silo does not run or the link has not taken it in, or if something is damaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the silo keeps what it knows."""
    parser.description = DESCRIPTION
    parser.add_argument("--state-path", type=Path, help="the silo's --state-path (default: state in its folder)")


def status(folder: Path, options: argparse.Namespace) -> int:
    """Print how a silo stands; return 1 where somebody should look.

    Args:
        folder: the silo's.
        options: see :func:`add_arguments`.

    Raises:
        UserError: there is no such folder, or its ``silo.toml`` cannot be read.
    """
    silo_settings.check_folder(folder)
    silo_settings.recall(folder, options, ["state-path"])
    report = _Status(folder, (options.state_path or folder / "state").expanduser().absolute())
    report.describe()
    for line in report.lines:
        print(printable(line))
    return int(not report.is_well)


class _Status:
    """The lines on one silo.

    Args:
        folder: the silo's.
        state: its state path.

    Attributes:
        lines: what is known, in plain sentences.
        is_well: whether the silo is connected and nothing is damaged.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.lines: list[str] = []
        self.is_well = True
        self._folder, self._state = folder, state
        self._kept = silo_settings.read(folder)
        self._now = datetime.now(UTC)
        self._runs = is_held(state / SILO_LOCK)
        self._noted: Connection | None = None
        self._policy: SiloPolicy | None = None
        self._policy_path = folder / POLICY_FILE

    def describe(self) -> None:
        """Look at everything; what is damaged is said, and the rest all the same."""
        with self._damage_said("link"):
            self._noted = read_connection(self._state / CONNECTION_FILE)
        name = self._noted.silo_name if self._noted else self._kept.get("silo-name") or self._name_of_images()
        self._say("silo", f"{name or 'has no name yet'}, folder {self._folder}")
        self._link()
        with self._damage_said("policy", "; nothing is answered until it can be"):
            self._read_policy()
        with self._damage_said("program"):
            self._program()
        own = self._state / folder_of_name(name)
        audit = AuditReport()
        with self._damage_said("audit"):
            audit = self._audit(own / AUDIT_FILE)
        with self._damage_said("left"):
            self._left(own, _run_of(audit))

    def _say(self, what: str, text: str, is_well: bool = True) -> None:
        self.lines.append(f"{what:<8} {text}")
        self.is_well &= is_well

    @contextmanager
    def _damage_said(self, what: str, outcome: str = "") -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self._say(what, f"BROKEN {error}{outcome}", is_well=False)

    def _name_of_images(self) -> str:
        return Path(self._kept["data-path"]).name if "data-path" in self._kept else ""

    def _link(self) -> None:
        noted, is_connected = self._noted, False
        if noted is None and self._runs:
            said = "the silo runs, and has noted nothing of it: an earlier version has started it"
        elif noted is None:
            said = f"the silo does not run: 'fedsynth silo start --folder {self._folder}'"
        elif self._runs:
            is_connected = noted.state == "connected"
            said = _running(noted, self._when)
        else:
            said = _ended(noted, self._when)
        self._say("link", said, is_connected)

    def _when(self, moment: str) -> str:
        """Return a moment with how long ago it was; as it stands where it is none."""
        try:
            parsed = datetime.fromisoformat(moment)
            return f"{parsed.isoformat(' ', 'seconds')} ({ago(parsed, self._now)})"
        except (ValueError, TypeError):
            return moment or "an unknown time"

    def _read_policy(self) -> None:
        own, noted = self._kept.get("policy"), self._noted if self._runs else None
        path = self._folder / own if own else self._folder / POLICY_FILE
        if noted is None:
            acting = path if own or path.exists() else None
        else:
            acting = Path(noted.policy) if noted.policy else None
        self._policy_path = acting or path
        if acting is None:
            self._policy = SiloPolicy()
            later = f"; {path} acts after the next start" if path.exists() else ""
            self._say("policy", f"none: the one that 'fedsynth silo init' writes acts{later}", not later)
            return
        self._policy = read_policy(acting)
        self._say("policy", f"{acting}: valid; answers {', '.join(self._policy.answers)}")

    def _program(self) -> None:
        pinned = self._policy.programs if self._policy else ()
        allowed = pinned
        if self._runs and self._noted is not None:
            allowed = self._noted.allowed
            if self._policy and set(pinned) != set(self._noted.pinned):
                self._say("program", "the policy's 'programs' were changed: they act after the next start", False)
        if not allowed:
            self._say("program", "not pinned: whatever a server sends runs here; see 'fedsynth silo program'")
        elif (own := program_digest()) in allowed:
            self._say("program", f"pinned: SHA-256 {own}, that of this version{_others(len(allowed) - 1)}")
        else:
            self._say("program", f"pinned: {len(allowed)}, and that of this version is not among them")

    def _audit(self, path: Path) -> AuditReport:
        if not path.is_file():
            self._say("run", "none has asked anything yet")
            return AuditReport()
        try:
            with path.open("rb") as file:
                report = read_audit(file)
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
        if report.runs:
            run = _run_of(report)
            totals = report.runs[run]
            counts = {"answered": totals.answered, "refused": totals.refused, "failed": totals.failed}
            said = ", ".join(f"{word} {sum(count.values()):,}" for word, count in counts.items())
            strategy = f" ({totals.strategy})" if totals.strategy else ""
            self._say("run", f"{run}{strategy}: {said}; whether it has ended a silo is not told")
            self._say("last", _message(report.last, self._when))
        if report.num_problems:
            self._say("audit", f"BROKEN {report.problems[0]}: see 'fedsynth silo audit'", False)
        return report

    def _left(self, own: Path, run: str) -> None:
        if self._policy is None:
            return
        sums = read_ledger(own / LEDGER_FILE)
        for name, fields in CEILINGS.items():
            counted = (sums.in_all, sums.runs.get(run, {}))
            parts = [
                f"{_left_of(self._policy.limit(field), one.get(name, 0))} {where}"
                for field, one, where in zip(reversed(fields), counted, ("in all runs", "in this run"), strict=True)
                if field and (run or one is sums.in_all)
            ]
            if parts:
                self._say("left", f"{name.replace('-', ' ')}: {', '.join(parts)}")
        self._epsilon(own, self._policy)

    def _epsilon(self, own: Path, policy: SiloPolicy) -> None:
        budget = policy.limit("privacy_epsilon")
        if budget == math.inf:
            self._say("left", "privacy ε: the policy sets no budget")
            return
        # Only here: what computes ε takes a second to import.
        from fedsynth.cli.deployment.silo_privacy import read_noted_account
        from fedsynth.privacy.spending import ACCOUNT_FILE, note_file, spent_epsilon

        path, note, spent = own / ACCOUNT_FILE, note_file(self._policy_path, own.name), 0.0
        if path.is_file():
            account = read_noted_account(path, note)
            if account.num_problems:
                raise UserError(f"{account.problems[0]}: see 'fedsynth silo privacy'")
            spent = spent_epsilon([one.mechanism for one in account.spendings], policy.privacy_delta)
        elif note.exists():
            raise UserError(f"there is no '{path}', of which '{note}' was written: put it back")
        self._say("left", f"privacy ε: {max(0.0, budget - spent):.4g} of '{policy.line('privacy_epsilon')}'")


def _run_of(audit: AuditReport) -> str:
    """Return the run of the last message; empty where there was none."""
    return printable(audit.last.get("run", ""), 40)


def _running(noted: Connection, when: _Told) -> str:
    match noted.state:
        case "connected":
            return f"connected to {noted.superlink} since {when(noted.since)}; started {when(noted.started)}"
        case "interrupted":
            return f"{noted.superlink} is not reached since {when(noted.since)}; the silo tries again by itself"
        case "refused":
            return f"refused: {noted.why}"
    return f"not connected: {noted.superlink} has not taken the silo in since its start, {when(noted.started)}"


def _ended(noted: Connection, when: _Told) -> str:
    if noted.state in ("connecting", "connected", "interrupted"):
        last = f"noted last: {noted.state} to {noted.superlink}, {when(noted.since)}"
        return f"the silo does not run, and ended without a word: killed, or the machine went down; {last}"
    return f"the silo does not run: {noted.state} {when(noted.since)}: {noted.why}"


def _others(count: int) -> str:
    return f", and {count} more" if count else ""


def _message(entry: Mapping[str, Any], when: _Told) -> str:
    kind = printable(entry.get("message", ""), 40).removeprefix("query.")
    outcome = printable(entry.get("outcome", ""), 40)
    server_round, seconds = entry.get("round"), entry.get("seconds")
    text = kind + (f", round {server_round}" if isinstance(server_round, int) else "")
    text += f": {outcome} {when(printable(entry.get('time', ''), 40))}"
    if isinstance(seconds, int | float) and seconds >= 0:
        text += f", after {duration(seconds)} of work"
    why = printable(entry.get("line") or entry.get("why") or "", 200)
    return text + (f": {why}" if why and outcome != "answered" else "")


def _left_of(most: float, used: float) -> str:
    return f"{used:,.0f} used, no ceiling" if most == math.inf else f"{max(0.0, most - used):,.0f} of {most:,.0f}"
