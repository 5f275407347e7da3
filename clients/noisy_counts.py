"""Label counts with differentially private noise, as a silo tells them to the server."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsynth.data import Silo
from fedsynth.files import write_json
from fedsynth.seeding import derive_seed

MIN_SCALES = 3
"""A noisy count below this many noise scales becomes 0: most such classes are not held by the silo, which would then be
asked about them."""


def noisy_label_counts(
    counts: NDArray[np.int64], scale: float, silo: Silo, state: Path, seed: int | None
) -> NDArray[np.int64]:
    """Add two-sided geometric noise, the discrete Laplace mechanism of Ghosh et al. 2012 (doi 10.1137/09076828X).

    Adding or removing one image changes one count by one: one release is (1/scale)-differentially private. Repeated
    draws would average out, so the noise of a silo is drawn once and its noisy counts are kept.

    Args:
        counts: images per class (num_classes,).
        scale: noise scale in images; 0: no noise.
        silo: whose counts they are.
        state: the silo's state folder, where the noisy counts are kept.
        seed: of a simulated run; None draws from the system's entropy, which the server cannot guess.

    Returns:
        (num_classes,), non-negative.
    """
    if scale == 0:
        return counts
    if seed is not None:
        return _with_noise(counts, scale, np.random.default_rng(derive_seed(seed, "label-count-noise", silo.name)))
    content = json.dumps([silo.fingerprint, counts.tolist(), scale])
    kept = state / "released-counts" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, _with_noise(counts, scale, np.random.default_rng()).tolist())
    return np.array(json.loads(kept.read_text(encoding="utf-8")), dtype=np.int64)


def _with_noise(counts: NDArray[np.int64], scale: float, rng: np.random.Generator) -> NDArray[np.int64]:
    # The difference of two geometric variables with success probability 1 - exp(-1/scale).
    draws = rng.geometric(-np.expm1(-1 / scale), (2, len(counts)))
    noisy = counts + draws[0] - draws[1]
    return np.where(noisy >= MIN_SCALES * scale, noisy, 0)
