"""Keys of differentially private training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsynth.config.keys import Section, kebab, key
from fedsynth.config.types import A_NUMBER, NONE, OpenUnit, Positive, PositiveFloat, Scalar, Share

_PRIVATE = {"dp-epsilon": (A_NUMBER,)}
NOT_PRIVATE = {"dp-epsilon": (NONE,)}
"""With what a key acts that private training has no use for."""


class Privacy(Section):
    """Differentially private training (DP-SGD)."""

    commands: ClassVar[tuple[str, ...]] = ("train-local",)
    dp_epsilon: Literal["none"] | Annotated[float, Field(gt=0, le=100)] = key(
        NONE,
        "ε that all training of a run costs each image of a silo, from which its noise follows; none: no such"
        " guarantee",
    )
    dp_delta: OpenUnit = key(1e-5, "δ of that guarantee, at most 1 / images of a silo", acts_with=_PRIVATE)
    dp_clip: PositiveFloat = key(1.0, "C, norm that the gradient of an image is clipped to", acts_with=_PRIVATE)
    dp_multiplicity: Annotated[int, Field(ge=1, le=256)] = key(
        4, "draws of noise level, noise and variant whose gradients are averaged for an image", acts_with=_PRIVATE
    )
    dp_sampling_rate: Share = key(0.5, "q, probability that an image is in a step", acts_with=_PRIVATE)
    dp_steps: Positive = key(
        200,
        "optimiser steps in the place of train-steps and local-steps, which act without dp-epsilon",
        acts_with=_PRIVATE,
    )


OF_DP_SUM: Mapping[str, Scalar] = {"dp-sampling-rate": 0.1, "dp-steps": 240, "learning-rate": 1e-2}
"""What ``"auto"`` means in ``dp-sum``, whose network is trained on the images of all silos: what was measured best
(docs/results/private.md, digits and MNIST at 16×16), and follows from nothing that only a silo knows."""
BY_STRATEGY = ("dp_sampling_rate", "dp_steps")
"""Keys that are ``"auto"`` in the flat configuration unless somebody chose."""


def privacy_defaults(strategy: str) -> dict[str, Scalar]:
    """Return what ``"auto"`` means for the keys of private training, by key."""
    own = OF_DP_SUM if strategy == "dp-sum" else {}
    usual = {kebab(name): Privacy.model_fields[name].default for name in BY_STRATEGY}
    return {name: own.get(name, value) for name, value in usual.items()}
