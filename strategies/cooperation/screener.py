"""Screening of noise predictions in every round: what may count, and what a silo has said before."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from fedsynth.mixture.screening import EQUAL, screen
from strategies.cooperation.cohort import Cohort

logger = logging.getLogger("fedsynth")

EqualGroups = tuple[tuple[int, ...], ...]

SKETCH = 256
"""Numbers that are kept of an answer."""

MOVED = 1e-3
"""Relative distance from which samples have moved enough for an honest answer to change."""


class AnswerMemory:
    """Recognises an answer that a silo has given before, to samples that have moved since."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, float]] = {}

    def repeats(self, silo: int, cohort: int, eps: torch.Tensor, x_t: torch.Tensor, alpha_bar: float) -> bool:
        """Whether a silo's answer is its last one about this cohort although it should have changed; remember it.

        Samples that moved along the answer itself, as DDIM moves them, imply the same images as before: there an exact
        model repeats itself.

        Args:
            silo: its index.
            cohort: which samples, the same ones in the same order every time.
            eps: the answer (n, C, H, W).
            x_t: the samples (n, C, H, W).
            alpha_bar: their ᾱ_t in (0, 1).
        """
        answer = _sketch(eps)
        samples = _sketch(x_t)
        before = self._last.get((silo, cohort))
        self._last[silo, cohort] = (answer, samples, alpha_bar)
        if before is None or _distance(answer, before[0]) > EQUAL:
            return False
        last_answer, last_samples, last_alpha_bar = before
        implied = (last_samples - (1 - last_alpha_bar) ** 0.5 * last_answer) / last_alpha_bar**0.5
        return _distance(samples, alpha_bar**0.5 * implied + (1 - alpha_bar) ** 0.5 * last_answer) > MOVED


def _sketch(values: torch.Tensor) -> torch.Tensor:
    """Evenly spaced numbers; a copy, so that it does not keep the answer's memory."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // SKETCH)].double()


def _distance(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).norm() / before.norm().clamp(min=1e-30))


class Screener:
    """Leaves out answers that no model of images could give, cohort by cohort.

    Args:
        names: of the silos.
        note: called with the index of every silo that is left out in a round, and why.
        bound: largest absolute value of clean samples.
    """

    def __init__(
        self, names: list[str], note: Callable[[int, str], None] = lambda silo, why: None, bound: float = 1.0
    ) -> None:
        self._names = names
        self._note = note
        self._bound = bound
        self._memory = AnswerMemory()
        self._faults: dict[int, str] = {}
        self._known: set[tuple[int, ...]] = set()
        self._alike = False

    def admit(
        self, cohort: Cohort, samples: torch.Tensor, epsilon: torch.Tensor, answered: torch.Tensor
    ) -> tuple[torch.Tensor, EqualGroups]:
        """Judge the answers (K, n, C, H, W) about a cohort's samples (n, C, H, W).

        Returns:
            Whose answers count, bool (K,), and the silos among them that gave equal ones.
        """
        outcome = screen(epsilon, samples, cohort.alpha_bar, answered, self._bound)
        if outcome.alike and not self._alike:
            self._alike = True
            silo, miss = min(outcome.alike.items())
            where = (
                f"class index {cohort.label}, t = {cohort.timestep}: most holders miss alike what trained models keep"
            )
            logger.warning("%s (%s, %s): undertrained rather than hostile, they count", where, self._names[silo], miss)
        sound = answered.clone()
        for k in torch.nonzero(answered).flatten().tolist():
            repeated = self._memory.repeats(k, cohort.number, epsilon[k], samples, cohort.alpha_bar)
            why = outcome.faults.get(k) or ("repeats its last answer" if repeated else None)
            if why:
                self._faults.setdefault(k, f"class index {cohort.label}, t = {cohort.timestep}: {why}")
                sound[k] = False
        equal = tuple(group for group in outcome.equal if all(sound[k] for k in group))
        for group in equal:
            if group not in self._known:
                self._known.add(group)
                names = ", ".join(self._names[k] for k in group)
                logger.warning("%s gave equal answers: they count as one silo", names)
        return sound, equal

    def report(self) -> None:
        """Log what was left out since the last report, one line per silo."""
        for k, why in sorted(self._faults.items()):
            logger.warning("%s left out: %s", self._names[k], why)
            self._note(k, f"screening: {why}")
        self._faults = {}
