"""What a private run may say of the privacy of what it made, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fedsynth.config import REAL_SILOS, RunConfig
from fedsynth.config.methods import DPSumSettings
from fedsynth.privacy.accounting import Geometric, Mechanism, epsilon
from fedsynth.privacy.dp_training import mechanism_of
from fedsynth.privacy.summed_noise import SummedNoise
from fedsynth.privacy.sums import threshold
from fedsynth.units import rounded_up

NEIGHBOURS = "one training image of a silo more or less"
NOT_COVERED = (
    "Not covered: class names and image size; the range of values of images of more than 8 bits, where value-range is"
    " not given; how long a silo takes to answer; settings that were chosen by looking at earlier results; several"
    " images of one person or object, which count one by one; images that lie at more than one silo; other runs on the"
    " same images, whose ε adds up."
)
FLOATS = " Noise is drawn as floating-point numbers, whose rounding the proof leaves out."
COMPANY = (
    " The last digits of an image's gradient may depend on which others it is computed with: the proof leaves that out."
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
        epsilon: ε of all training at one silo, the largest of all silos; in ``dp-sum`` that of the training of all,
            towards the server.
        delta: δ of it.
        mechanism: that has it.
        towards: whom ``epsilon`` holds towards, in a few words; empty: all others, as at the silo.
        public: ε towards all who see what was made and know no silo's share of the noise; None: there are no shares.
        count_noise: scale of the noise of simulated silos' counts; 0: real silos, whose policies decide.
        sentences: all of it in words.
    """

    epsilon: float
    delta: float
    mechanism: Mechanism
    towards: str
    public: float | None
    count_noise: float
    sentences: tuple[str, ...]

    def row(self) -> dict[str, float | str]:
        """Return what the results say of it."""
        row: dict[str, float | str] = {
            "privacy-epsilon": self.epsilon,
            "privacy-delta": self.delta,
            "noise-multiplier": self.mechanism.noise_multiplier,
        }
        if self.public is not None:
            row |= {"privacy-towards": self.towards, "privacy-epsilon-public": self.public}
        return row

    def facts(self) -> dict[str, object]:
        """Return what ``provenance.json`` says of it."""
        return {**self.row(), "neighbours": NEIGHBOURS, "statement": list(self.sentences)}


@lru_cache(maxsize=4)
def privacy_statement(config: RunConfig) -> PrivacyStatement | None:
    """Return the guarantee of a run; None without ``dp-epsilon``."""
    if not config.private:
        return None
    keys, mechanism = config.privacy, mechanism_of(config)
    simulated = config.data.dataset != REAL_SILOS
    reached, scale = epsilon([mechanism], keys.dp_delta), config.simulated_count_noise if simulated else 0.0
    summed = isinstance(config.settings, DPSumSettings)
    towards, public = _whom(config, mechanism) if summed else ("", None)
    again = "again" if summed else "nothing where a silo still has its answer, and costs again otherwise"
    sentences = (
        *(_of_sums if summed else _of_trainings)(config, mechanism, reached),
        _of_counts(mechanism, keys.dp_delta, scale),
        "It holds if the silos run this program unchanged. A round that is repeated after an interruption costs"
        f" {again}: what was spent in all, a silo's own account says.",
        *((PUBLIC_START,) if config.model.init_from else ()),
        *((SIMULATED,) if simulated else ()),
        NOT_COVERED + (COMPANY if summed else FLOATS),
    )
    return PrivacyStatement(reached, keys.dp_delta, mechanism, towards, public, scale, sentences)


def _shared(config: RunConfig, mechanism: Mechanism) -> SummedNoise:
    assert isinstance(config.settings, DPSumSettings)
    return SummedNoise(mechanism.noise_multiplier, config.run.num_clients, config.settings.dp_colluders, norm=1)


def _whom(config: RunConfig, mechanism: Mechanism) -> tuple[str, float]:
    """Say whom the mechanism holds towards in ``dp-sum``, and return ε towards all others."""
    noise = _shared(config, mechanism)
    helped = f"{noise.colluders} silo{'s' * (noise.colluders != 1)} may help" if noise.colluders else "no silo helps"
    public = noise.towards_public(mechanism.sampling_rate, mechanism.steps)
    return f"a server that {helped}", epsilon([public], config.privacy.dp_delta)


def _of_trainings(config: RunConfig, mechanism: Mechanism, reached: float) -> tuple[str, ...]:
    keys = config.privacy
    return (
        f"At every silo, training is differentially private with ε = {rounded_up(reached)} and δ = {keys.dp_delta:g}"
        f" as to {NEIGHBOURS} (add/remove). So is whatever follows from it: weights, answers, and these images."
        " Silos without an image in common do not add up.",
        f"Mechanism: DP-SGD (Abadi et al. 2016), {mechanism.steps} steps at a silo, each on a Poisson sample with"
        f" probability {mechanism.sampling_rate:g}, gradients of images clipped to norm {keys.dp_clip:g}, Gaussian"
        f" noise with multiplier {mechanism.noise_multiplier:.4g}; accounted for with privacy loss distributions.",
    )


def _of_sums(config: RunConfig, mechanism: Mechanism, reached: float) -> tuple[str, ...]:
    keys, noise = config.privacy, _shared(config, mechanism)
    towards, public = _whom(config, mechanism)
    helpers = f"{noise.colluders} silo{'s' * (noise.colluders != 1)}"
    insiders = "Other silos, which know a share of the noise and see the weights of every round, are not covered."
    if noise.colluders:
        insiders = f"Towards {helpers}, which see the weights of every round, it is the same as towards the server."
    return (
        f"Training is differentially private with δ = {keys.dp_delta:g} as to {NEIGHBOURS} (add/remove):"
        f" with ε = {rounded_up(public)} towards all who see what follows from it, the model and these images, and know"
        f" no silo's share of the noise; with ε = {rounded_up(reached)} towards {towards}, which sees sums of"
        f" the silos' answers round by round. {insiders} Silos without an image in common do not add up.",
        f"Mechanism: {mechanism.steps} steps of DP-SGD (Abadi et al. 2016) on secure sums over at least"
        f" {threshold(config.run.num_clients)} of {config.run.num_clients} silos; in a step each image takes part with"
        f" probability {mechanism.sampling_rate:g}, by itself. Gradients of images are clipped to norm"
        f" {keys.dp_clip:g} and rounded to whole numbers; every silo adds discrete Gaussian noise (Canonne et al."
        f" 2020), of which the shares of {noise.honest} silos have noise multiplier {mechanism.noise_multiplier:.4g}"
        " together; accounted for with privacy loss distributions.",
        "Towards the server it holds as long as masks hide single answers from it: if the silos know one another's"
        " keys, and no others help it.",
    )


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
