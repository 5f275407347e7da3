"""What a real silo's images have spent: written before anything touches them, and refused beyond the policy's ε.

This is ``privacy.jsonl``. What is answered how often is counted in ``ledger.json`` (:mod:`clients.ledger`), and what
was asked is told in ``audit.jsonl`` (:mod:`clients.audit_log`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from pathlib import Path

from fedsynth.chain import Link
from fedsynth.chained_file import ChainedFile
from fedsynth.errors import UserError
from fedsynth.files import damage_named, write_json
from fedsynth.policy import PolicyError, SiloPolicy
from fedsynth.privacy.accounting import AnyMechanism, Mechanism
from fedsynth.privacy.spending import (
    ACCOUNT_FILE,
    AccountReport,
    Spending,
    read_account,
    spent_epsilon,
)

logger = logging.getLogger("fedsynth")

TRAINING = "training"
SUMMED_STEP = "summed step"
"""A step of a model that all silos train, of which only the sum over silos is known."""


class PrivacyAccount:
    """The account of one silo; several processes may write to it in turn.

    Args:
        state: the silo's state folder.
        policy: which ε and δ all together may reach.
        run: Flower's number of the run that asks.
        note: file outside the state folder that keeps where the account stands, so that a removed or older account is
            noticed; None: no such file.
    """

    def __init__(self, state: Path, policy: SiloPolicy, run: str, note: Path | None = None) -> None:
        self.path = state / ACCOUNT_FILE
        self._lines = ChainedFile(self.path, "the privacy account", "fedsynth silo privacy")
        self._policy = policy
        self._run = run
        self._note = note
        self._lost = False

    @property
    def bounded(self) -> bool:
        """Whether the policy sets a budget."""
        return self._policy.limit("privacy_epsilon") < math.inf

    def spend(self, what: str, mechanism: AnyMechanism | None, data: str, public: Mechanism | None = None) -> None:
        """Account for a release that is about to be drawn.

        Args:
            what: is released, such as ``counts``.
            mechanism: how; None: without noise. Then, and as there is no budget, a run is written down once.
            data: the state of the images.
            public: what it comes to towards the public, of a secure sum; the budget is for ``mechanism``.

        Raises:
            PolicyError: it would go beyond the budget; nothing is written then.
            UserError: the account is damaged, or cannot be written.
        """
        with self._opened() as (file, last, spendings):
            spending = replace(self._spending(what, mechanism, data), public=public)
            self._refuse_beyond(spending, spendings)
            if mechanism is None and any(replace(spent, time=spending.time) == spending for spent in spendings):
                return
            self._write(file, spending, last)

    def before_steps(self, data: str) -> Callable[[Mechanism], None]:
        """Return what a training calls with all its steps before the first, and not again where it continues.

        Steps that a crash has it repeat are not another release: nobody has seen what became of them. A training that
        begins anew calls it anew.

        Args:
            data: the state of the images.

        Raises:
            PolicyError, UserError: see :meth:`spend`; of what is returned.
        """
        return partial(self.spend, TRAINING, data=data)

    def before_summed_step(self, data: str) -> Callable[[Mechanism, Mechanism], None]:
        """Return what a silo calls before each answer to a secure sum, with what it costs towards server and public.

        Also before one to a question that comes again: its answer is another.

        Args:
            data: the state of the images.

        Raises:
            PolicyError, UserError: see :meth:`spend`; of what is returned.
        """
        return lambda server, public: self.spend(SUMMED_STEP, server, data, public)

    def told_before(self, what: str, mechanism: AnyMechanism | None, data: str) -> None:
        """Account for an answer that is kept and told again, unless the account has it: an earlier version told it.

        Raises:
            UserError: the account is damaged, or cannot be written.
        """
        with self._opened() as (file, last, spendings):
            if not any((spent.what, spent.data) == (what, data) for spent in spendings):
                self._write(file, self._spending(what, mechanism, data), last)

    def left(self) -> float:
        """Return what is left of the budget's ε: infinity without one; 0 where something had no noise.

        Raises:
            UserError: the account is damaged.
        """
        if not self.bounded:
            return math.inf
        if not self.path.exists() and (self._note is None or not self._note.exists()):
            return self._policy.limit("privacy_epsilon")
        with self._opened() as (_, _, spendings):
            return max(0.0, self._policy.limit("privacy_epsilon") - self._epsilon(spendings))

    def _spending(self, what: str, mechanism: AnyMechanism | None, data: str) -> Spending:
        return Spending(what, mechanism, data, self._run, _now())

    def _epsilon(self, spendings: Sequence[Spending]) -> float:
        return spent_epsilon([spent.mechanism for spent in spendings], self._policy.privacy_delta)

    def _refuse_beyond(self, new: Spending, spendings: Sequence[Spending]) -> None:
        if not self.bounded:
            return
        if new.mechanism is None:
            self._policy.refuse("privacy_epsilon", f"{new.what} without noise, or with hardly any, have no such bound")
        budget, before = self._policy.limit("privacy_epsilon"), self._epsilon(spendings)
        if before == math.inf:
            self._policy.refuse(
                "privacy_epsilon", "earlier answers about these images had no noise: 'fedsynth silo privacy' lists them"
            )
        if (after := self._epsilon([*spendings, new])) > budget:
            delta = f"at privacy-delta = {self._policy.privacy_delta:g}"
            spent = f"{before:.3g} is spent, {max(0.0, budget - before):.3g} left"
            self._policy.refuse("privacy_epsilon", f"{new.what} would bring ε to {after:.3g} {delta}; {spent}")

    @contextmanager
    def _opened(self) -> Iterator[tuple[FileIO, Link, list[Spending]]]:
        """Keep other processes out, and yield the file, where it ends, and what it says, all checked."""
        try:
            with self._lines.opened() as file:
                last = self._lines.last(file, _now())
                yield file, last, self._read().spendings
        except PolicyError:
            raise
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"'{self.path}': {reason}; nothing touches the images unaccounted for") from error

    def _read(self) -> AccountReport:
        """Return what the account says, if its chain holds; where there is a budget, only if it is the one noted."""
        noted = self._noted()
        with self.path.open("rb") as file:
            report = read_account(file, noted)
        self._lost = bool(noted) and not report.noted_line
        if report.num_problems > self._lost:
            raise UserError(f"{report.problems[0]}: put back a copy of it")
        if self._lost and self.bounded:
            raise UserError(
                f"it is not the one of which '{self._note}' was written, or an older copy: put that one back. Whoever"
                " moves both files away begins anew, and promises nothing about what was told before"
            )
        return report

    def _noted(self) -> str:
        if self._note is None or not self._note.exists():
            return ""
        with damage_named(self._note, "gives up noticing that an older account was put in the place of this one"):
            return str(json.loads(self._note.read_text(encoding="utf-8"))["hash"])

    def _write(self, file: FileIO, spending: Spending, last: Link) -> None:
        link = self._lines.add(file, spending.content(), last)
        if self._note is None:
            return
        if self._lost:
            logger.warning(
                "'%s' is not the account that '%s' was written of: no budget will hold", self.path, self._note
            )
            return
        try:
            write_json(self._note, {"entry": link.number, "hash": link.hash})
        except OSError as error:
            # The account itself is on the disk; an older note is still of one of its lines.
            logger.warning("'%s' cannot be written (%s): a lost account may go unnoticed", self._note, error.strerror)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
