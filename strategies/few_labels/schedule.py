"""Which round of a run belongs to which of its phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsynth.config.methods import DDSASettings

Kind = Literal["classifier", "confusion", "selection", "diffusion", "synthesis"]
FINAL = "synthetic"
"""Name of the phase that trains the classifier that a run is for."""


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: of what is trained on in it, see :data:`fedsynth.messages.train.IMAGES`, or its kind.
        kind: what happens in it.
        rounds: how many it has.
    """

    name: str
    kind: Kind
    rounds: int = 1


def phases_of(settings: DDSASettings) -> tuple[Phase, ...]:
    """Return the phases of a run, in their order."""
    rounds = settings.classifier_rounds
    before = [Phase(name, "classifier", rounds) for name in settings.classifiers if name == "first"]
    if "confusion" in settings.asks:
        before.append(Phase("confusion", "confusion"))
    if "select" in settings.asks:
        before.append(Phase("selection", "selection"))
    return (
        *before,
        Phase("diffusion", "diffusion", 1 if settings.diffusion_strategy == "pooled" else settings.num_rounds),
        Phase("synthesis", "synthesis"),
        *(Phase(name, "classifier", rounds) for name in settings.classifiers if name != "first"),
    )


def place(phases: Sequence[Phase], server_round: int) -> tuple[int, int]:
    """Return the index of the phase of a round, from 0, and the number of the round in it, from 1.

    Raises:
        ValueError: there is no such round.
    """
    number = server_round
    for index, phase in enumerate(phases):
        if 1 <= number <= phase.rounds:
            return index, number
        number -= phase.rounds
    raise ValueError(f"round {server_round} of {sum(phase.rounds for phase in phases)}")
