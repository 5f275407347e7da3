"""How many images a silo says that it has: with noise where the run or its policy asks for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clients.context import SiloContext
from clients.noisy_counts import noisy_label_counts
from fedsynth.seeding import derive_seed
from fedsynth.spec import ImageSpec


def told_counts(silo: SiloContext, spec: ImageSpec, serves: NDArray[np.bool_] | int = 1) -> NDArray[np.int64]:
    """Return training images per class as the silo tells them; ``serves`` is 0 for classes that do not count."""
    config = silo.config
    if not silo.simulated:
        if config.private and not silo.policy.count_noise:
            silo.policy.refuse("count_noise", "exact counts are not private, and the run has a dp-epsilon")
        with silo.explained_state():
            return silo.released(spec).training_counts(spec.classes, config.data.holdout_fraction) * serves
    rng = np.random.default_rng(derive_seed(config.run.seed, "label-count-noise", silo.name))
    return noisy_label_counts(silo.images(spec).train.label_counts() * serves, config.simulated_count_noise, rng)


def told_number(silo: SiloContext, spec: ImageSpec) -> int:
    """Return the number of training images as the silo tells it; a simulated one tells it exactly, unless privately."""
    exact = silo.simulated and not silo.config.private
    return len(silo.images(spec).train) if exact else int(told_counts(silo, spec).sum())
