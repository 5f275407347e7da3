"""What a private run may say of the privacy of what it made, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from fedsynth.config import REAL_SILOS, RunConfig
from fedsynth.privacy.accounting import Geometric, Mechanism, epsilon
from fedsynth.privacy.dp_training import mechanism_of
from fedsynth.units import rounded_up

NEIGHBOURS = "one training image of a silo more or less"
NOT_COVERED = (
    "Not covered: class names and image size; the range of values of images of more than 8 bits, where value-range is"
    " not given; how long a silo takes to answer; settings that were chosen by looking at earlier results; several"
    " images of one person or object, which count one by one; images that lie at more than one silo; other runs on the"
    " same images, whose ε adds up. Noise is drawn as floating-point numbers, whose rounding the proof leaves out."
)
PUBLIC_START = (
    "Training started from a public model (init-from), which is not covered: of an image that it was trained on,"
    " nothing is promised."
)
SIMULATED = "This run is a simulation: its operator has all images, and the noise of the counts follows from its seed."


@dataclass(frozen=True)
class PrivacyStatement:
    """The guarantee of a run.

    Attributes:
        epsilon: ε of all training at one silo, the largest of all silos.
        delta: δ of it.
        mechanism: that has it.
        count_noise: scale of the noise of simulated silos' counts; 0: real silos, whose policies decide.
        sentences: all of it in words.
    """

    epsilon: float
    delta: float
    mechanism: Mechanism
    count_noise: float
    sentences: tuple[str, ...]

    def row(self) -> dict[str, float]:
        """Return what the results say of it."""
        return {
            "privacy-epsilon": self.epsilon,
            "privacy-delta": self.delta,
            "noise-multiplier": self.mechanism.noise_multiplier,
        }

    def facts(self) -> dict[str, object]:
        """Return what ``provenance.json`` says of it."""
        return {**self.row(), "neighbours": NEIGHBOURS, "statement": list(self.sentences)}


def privacy_statement(config: RunConfig) -> PrivacyStatement | None:
    """Return the guarantee of a run; None without ``dp-epsilon``."""
    if not config.private:
        return None
    keys, mechanism = config.privacy, mechanism_of(config)
    simulated = config.data.dataset != REAL_SILOS
    reached, scale = epsilon([mechanism], keys.dp_delta), config.simulated_count_noise if simulated else 0.0
    sentences = (
        f"At every silo, training is differentially private with ε = {rounded_up(reached)} and δ = {keys.dp_delta:g}"
        f" as to {NEIGHBOURS} (add/remove). So is whatever follows from it: weights, answers, and these images."
        " Silos without an image in common do not add up.",
        f"Mechanism: DP-SGD (Abadi et al. 2016), {mechanism.steps} steps at a silo, each on a Poisson sample with"
        f" probability {mechanism.sampling_rate:g}, gradients of images clipped to norm {keys.dp_clip:g}, Gaussian"
        f" noise with multiplier {mechanism.noise_multiplier:.4g}; accounted for with privacy loss distributions.",
        _of_counts(mechanism, keys.dp_delta, scale),
        "It holds if the silos run this program unchanged. A round that is repeated after an interruption costs nothing"
        " where a silo still has its answer, and costs again otherwise: what was spent in all, its own account says.",
        *((PUBLIC_START,) if config.model.init_from else ()),
        *((SIMULATED,) if simulated else ()),
        NOT_COVERED,
    )
    return PrivacyStatement(reached, keys.dp_delta, mechanism, scale, sentences)


def _of_counts(mechanism: Mechanism, delta: float, scale: float) -> str:
    if not scale:
        return (
            "The images of each class were told with noise of their own, at the scale in each silo's policy: that costs"
            " ε = 1 / scale besides, once for a data set."
        )
    together = epsilon([mechanism, Geometric(scale)], delta)
    return (
        f"The images of each class were told with geometric noise of scale {scale:g}, which costs ε = {1 / scale:.3g}"
        f" by itself, and {rounded_up(together)} together with the training."
    )
