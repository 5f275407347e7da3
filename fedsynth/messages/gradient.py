"""``query.gradient``: the silos' images' gradients, for a secure sum with noise in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from fedsynth.messages.fields import MAX_STEPS, array_record, image_spec, setting, whole
from fedsynth.messages.masked import SumRequest
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientRequest(SumRequest):
    """Weights at which gradients are wanted.

    Attributes:
        arrays: all weights of the network, by state dict name.
        spec: format and classes of the run.
        server_round: 1 for the first; each is one step of the optimiser.
        norm: Δ, norm of an image's gradient at most, in the whole numbers that are summed.
    """

    kind: ClassVar[str] = "query.gradient"

    arrays: Arrays = array_record()
    spec: ImageSpec = image_spec()
    server_round: int = setting(whole(1, MAX_STEPS))
    norm: int = setting(whole(1, 2**20))

    @property
    def size(self) -> int:
        """One for every weight."""
        return sum(prod(array.shape) for array in self.arrays.values())
