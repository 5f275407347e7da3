"""What a secure sum is about: the same for every silo, bound into every mask, and checked before anybody answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from fedsynth.config.types import LEAST_SILOS, MOST_SILOS
from fedsynth.errors import UserError
from fedsynth.text import printable

if TYPE_CHECKING:
    import torch

LARGEST_SHARE = 0.5
"""Of the weights of a group; with one that weighs more, the sum is mostly that silo's answer."""
_ROUNDING = 1e-6
"""Weights travel in single precision."""


class SumError(UserError):
    """A secure sum that a silo does not take part in, or that cannot be finished; names who and why."""


def threshold(silos: int) -> int:
    """Return how many of the participants must survive: t = ⌊2K/3⌋ + 1.

    Two lists of t silos each share 2t - K > K/3 of them, so that no two lists can both be agreed on unless more than a
    third of the silos lies.
    """
    return 2 * silos // 3 + 1


@dataclass(frozen=True)
class Terms:
    """What is summed.

    Attributes:
        run: token of the run.
        step: rises from sum to sum within a run; the same step may be asked again with another ``attempt``.
        attempt: text that no other attempt at the step has.
        content: SHA-256, in hexadecimal digits, of everything that is asked.
        size: numbers in the sum.
        participants: names of the silos, sorted.
        fingerprints: of their public keys, in that order.
        weights: of every participant, in that order, in every group that is asked about (a class); 0: it holds none.
    """

    run: str
    step: int
    attempt: str
    content: str
    size: int
    participants: tuple[str, ...]
    fingerprints: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            SumError: says what.
        """
        names, count = self.participants, len(self.participants)
        if not LEAST_SILOS <= count <= MOST_SILOS:
            raise SumError(f"{count} silos: a secure sum is over {LEAST_SILOS} to {MOST_SILOS}")
        if list(names) != sorted(set(names)):
            raise SumError("the participants are not sorted, or one stands twice")
        if len(self.fingerprints) != count or len(self.weights) != count:
            raise SumError(f"{len(self.fingerprints)} keys and {len(self.weights)} weights of {count} silos")
        groups = len(self.weights[0])
        if not groups or any(len(row) != groups for row in self.weights):
            raise SumError("the silos' weights differ in number, or there are none")
        if self.step < 0 or self.size < 1:
            raise SumError(f"step {self.step} of {self.size} numbers")

    @cached_property
    def question(self) -> str:
        """SHA-256 of everything but ``attempt``."""
        return _digest([self.run, self.step, *self._rest])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything: every key of the sum is derived from it."""
        return _digest([self.run, self.step, self.attempt, *self._rest])

    @property
    def threshold(self) -> int:
        """Silos that must survive."""
        return threshold(len(self.participants))

    @property
    def _rest(self) -> list[object]:
        # As floats: JSON writes 1 and 1.0 differently.
        weights = [[float(weight) for weight in row] for row in self.weights]
        return [self.content, self.size, self.participants, self.fingerprints, weights]

    def row(self, name: str) -> tuple[float, ...]:
        """Return a participant's weights."""
        return self.weights[self.participants.index(name)]

    def check(self, survivors: Sequence[str], least_holders: int = LEAST_SILOS) -> None:
        """Refuse a sum over ``survivors`` that would show an answer, or that too few are left for.

        Raises:
            SumError: says why.
        """
        if list(survivors) != sorted(set(survivors).intersection(self.participants)):
            raise SumError("the list of survivors is not sorted, or names somebody who was not asked")
        if len(survivors) < self.threshold:
            raise SumError(f"{len(survivors)} of {len(self.participants)} silos are left, {self.threshold} are needed")
        check_weights([self.row(name) for name in survivors], least_holders)


class Fingerprinted(Protocol):
    """A silo's public keys."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits by which they are recognised."""


class Question(Protocol):
    """A message that asks for a sum."""

    @property
    def run_token(self) -> str:
        """Names the run."""

    @property
    def attempt(self) -> str:
        """Names the attempt."""

    @property
    def size(self) -> int:
        """Numbers in an answer."""

    @property
    def weights(self) -> torch.Tensor:
        """Of every participant, sorted by name, in every group: (K, G)."""

    def content(self) -> str:
        """Return the SHA-256 of what is asked."""


def sum_terms(question: Question, step: int, keys: Mapping[str, Fingerprinted]) -> Terms:
    """Return the terms of a question, as server and silos derive them, each by itself.

    Args:
        question: as it travels.
        step: rises within the run.
        keys: public keys of the participants, by name.

    Raises:
        SumError: there are no such terms.
    """
    names = tuple(sorted(keys))
    return Terms(
        run=question.run_token,
        step=step,
        attempt=question.attempt,
        content=question.content(),
        size=question.size,
        participants=names,
        fingerprints=tuple(keys[name].fingerprint for name in names),
        weights=tuple(tuple(row) for row in question.weights.double().tolist()),
    )


def check_weights(rows: Sequence[Sequence[float]], least_holders: int = LEAST_SILOS) -> None:
    """Refuse weights under which a sum shows what one silo answered.

    Args:
        rows: of every silo, in every group.
        least_holders: silos with a weight in a group, at least.

    Raises:
        SumError: names the group by its index.
    """
    for group, column in enumerate(zip(*rows, strict=True)):
        if not all(math.isfinite(weight) and 0 <= weight <= 1 for weight in column):
            raise SumError(f"group {group}: weights must be 0 to 1")
        holders = sum(weight > 0 for weight in column)
        if holders < least_holders:
            raise SumError(f"group {group}: {holders} holders, {least_holders} are needed")
        share = max(column) / sum(column)
        if share > LARGEST_SHARE + _ROUNDING:
            raise SumError(f"group {group}: a silo has {share:.2f} of the weight, {LARGEST_SHARE} is the most")


def shown(names: Sequence[str]) -> str:
    """Return names for an error text."""
    return printable(", ".join(names))


def _digest(values: list[object]) -> str:
    return sha256(json.dumps(values, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
