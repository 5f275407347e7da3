"""``query.masked_train``: a silo continues the federated model, and answers its update for a secure sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedsynth.messages.fields import MessageError, real, setting, several, text
from fedsynth.messages.masked import SumRequest
from fedsynth.messages.train import TrainingRound, TrainRequest

LEAST_RANGE, LARGEST_RANGE = 2.0**-10, 2.0**21
"""Of an update: finer steps than single precision has nobody needs, and larger weights than a million have no model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedTrainRequest(TrainingRound, SumRequest):
    """Weights to continue from; the answer is what training has changed in them, weighted and masked.

    Attributes:
        ranges: size to which an update is clamped, for every floating-point array in their order.
        parts: of the network, a group of weights each, in that order; empty: one group.
    """

    kind: ClassVar[str] = "query.masked_train"

    ranges: tuple[float, ...] = setting(several(real(LEAST_RANGE, LARGEST_RANGE)))
    parts: tuple[str, ...] = setting(several(text(r"[a-z]{1,32}"), 10), ())

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the floating-point arrays: only they are summed, in this order."""
        return tuple(name for name, array in self.arrays.items() if array.dtype.startswith("float"))

    @property
    def size(self) -> int:
        """One for every floating-point weight."""
        return sum(math.prod(self.arrays[name].shape) for name in self.layers)

    @property
    def groups(self) -> int:
        """Parts of the network."""
        return max(1, len(self.parts))

    def check(self) -> None:
        """Compare the lengths."""
        if len(self.ranges) != len(self.layers):
            raise MessageError(f"{len(self.ranges)} ranges of {len(self.layers)} layers")
        super().check()

    def training(self) -> TrainRequest:
        """Return the same question without the sum."""
        return TrainRequest(**self.training_round(), run_token=self.run_token)
