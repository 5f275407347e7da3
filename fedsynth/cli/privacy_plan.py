"""Say which noise a private training needs, what quality to expect of it, and what to do instead."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import lru_cache

from fedsynth.cli.options import given_keys, refuse_rest
from fedsynth.config.documents import own_defaults
from fedsynth.config.methods import DPSumSettings
from fedsynth.config.privacy import Privacy
from fedsynth.config.run_config import KEYS, RunConfig
from fedsynth.config.types import AUTO, LEAST_SILOS, MOST_SILOS, Scalar
from fedsynth.errors import UserError
from fedsynth.privacy.accounting import Mechanism, epsilon, noise_multiplier_for
from fedsynth.privacy.expectations import (
    DIGITS,
    LEAST_ALONE,
    ONE_SILO,
    PUBLIC_START,
    REAL_ACCURACY,
    TEN_SILOS,
    TWO_CLASSES,
    WITHOUT_PRIVACY,
    nearest,
    quality_class,
)
from fedsynth.units import rounded_up

TAKEN = ("dp-delta", "dp-sampling-rate", "dp-steps", "dp-colluders")

LEAST_NOISE = 0.4
"""Noise multiplier below which nobody is told an ε."""
OWN = ("--records", "--silos", "--epsilon", "--noise-multiplier")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many images and silos there are, which ε is aimed at, and the keys that decide about the noise."""
    parser.add_argument("--records", type=int, required=True, metavar="N", help="training images of a silo")
    parser.add_argument("--silos", type=int, default=1, metavar="K", help="silos of about as many images (default: 1)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--epsilon", type=float, metavar="ε", help="what would be dp-epsilon, from which σ follows")
    target.add_argument("--noise-multiplier", type=float, metavar="σ", help="noise, from which dp-epsilon follows")
    for name in TAKEN:
        key, own = KEYS[name], own_defaults(KEYS[name])
        default = key.default if key.default != AUTO else own.get("default", own.get("dp-sum"))
        if "default" in own:
            default = f"{default}, in dp-sum {own['dp-sum']}"
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"{key.meaning}; {key.allowed} (default: {default})")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the plan."""
    refuse_rest("privacy-plan", rest, (*OWN, *(f"--{name}" for name in TAKEN)))
    for name in ("records", "silos"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be a whole number >= 1")
    summed = _can_sum(options.silos)
    given = given_keys(options, TAKEN)
    if not summed and "dp-colluders" in given:
        raise UserError(f"--dp-colluders: acts in dp-sum, which needs {LEAST_SILOS} to {MOST_SILOS} --silos")
    own = {name: value for name, value in given.items() if name != "dp-colluders"}
    keys = _planned(own, options).privacy
    if keys.dp_delta * options.records > 1:
        raise UserError(f"--dp-delta {keys.dp_delta:g}: must be <= 1 / records = {1 / options.records:.3g}")
    lines = [*_alone(keys, options.records, options.silos)]
    if summed:
        sums = _planned({**given, "strategy": "dp-sum", "num-clients": options.silos}, options)
        lines += [*_together(sums, options.records, _noise(keys, options.records))]
    lines += ["", *_expected(options.records, options.silos, float(keys.dp_epsilon))]
    lines += ["", *_advice(options.records, options.silos, float(keys.dp_epsilon))]
    print("\n".join(lines))
    return 0


def _planned(given: dict[str, Scalar], options: argparse.Namespace) -> RunConfig:
    """Return the configuration with the ε that is aimed at, or that follows from the noise.

    Raises:
        UserError: a key is refused; no ε that can be aimed at follows from the noise.
    """
    if options.noise_multiplier is None:
        return RunConfig.from_run_config({**given, "dp-epsilon": options.epsilon})
    keys = RunConfig.from_run_config({**given, "dp-epsilon": 1.0}).privacy
    asked = f"--noise-multiplier {options.noise_multiplier:g}"
    if not options.noise_multiplier >= LEAST_NOISE:
        raise UserError(f"{asked}: must be >= {LEAST_NOISE:g}; with less noise ε is no promise, and takes long to find")
    try:
        mechanism = Mechanism(options.noise_multiplier, keys.dp_sampling_rate, keys.dp_steps)
    except ValueError as error:
        raise UserError(f"{asked}: {error}") from None
    reached = epsilon([mechanism], keys.dp_delta)
    try:
        return RunConfig.from_run_config({**given, "dp-epsilon": reached})
    except UserError as error:
        raise UserError(
            f"{asked}, {mechanism.steps} steps, sampling rate {mechanism.sampling_rate:g}: {error}"
        ) from None


def _can_sum(silos: int) -> bool:
    return LEAST_SILOS <= silos <= MOST_SILOS


def _alone(keys: Privacy, records: int, silos: int) -> Iterator[str]:
    delta = keys.dp_delta
    many = f"{silos} silo{'s' if silos > 1 else ''} of {records:,} images"
    yield f"{many}, ε = {rounded_up(float(keys.dp_epsilon))}, δ = {delta:g}:"
    yield "private as to one image of a silo more or less"
    yield from _steps(keys, records)
    noise = f"{_noise(keys, records):.2g}"
    yield f"  noise                {noise}: σ / (q n √steps), which decides about the quality where σ > 2"


def _steps(keys: Privacy, records: int) -> Iterator[str]:
    rate = keys.dp_sampling_rate
    yield f"  noise multiplier σ   {_sigma(keys):.2f}"
    yield f"  sampling rate q      {rate:g}: a step sees {rate * records:.0f} images of a silo in the mean"
    yield f"  steps                {keys.dp_steps}"


def _together(config: RunConfig, records: int, alone: float) -> Iterator[str]:
    """Say what ε takes in dp-sum, if all silos answer.

    Args:
        config: of a dp-sum run.
        records: images of a silo.
        alone: noise of a silo's own model.
    """
    from fedsynth.privacy.summed_noise import SummedNoise  # here, because --help would wait for torch

    assert isinstance(config.settings, DPSumSettings)
    keys, silos, colluders = config.privacy, config.run.num_clients, config.settings.dp_colluders
    noise = SummedNoise(_sigma(keys), silos, colluders, norm=1)
    summed = _noise(keys, silos * records) * math.sqrt(silos / noise.honest)
    public = epsilon([noise.towards_public(keys.dp_sampling_rate, keys.dp_steps)], keys.dp_delta)
    helped = f"that {colluders} silo{'s' if colluders > 1 else ''} may help" if colluders else "that no silo helps"
    yield "In dp-sum all silos train one model, and each adds a share of the noise:"
    yield from _steps(keys, records)
    yield f"  noise                {summed:.2g}, {alone / summed:.1f} times less than in a silo's own model"
    yield f"  ε                    {rounded_up(float(keys.dp_epsilon))} towards a server {helped},"
    yield f"                       {rounded_up(public)} towards all others who see the model and the images"


@lru_cache(maxsize=4)
def _sigma(keys: Privacy) -> float:
    return noise_multiplier_for(float(keys.dp_epsilon), keys.dp_delta, keys.dp_sampling_rate, keys.dp_steps)


def _noise(keys: Privacy, images: int) -> float:
    return _sigma(keys) / (keys.dp_sampling_rate * images * math.sqrt(keys.dp_steps))


def _expected(records: int, silos: int, epsilon: float) -> Iterator[str]:
    yield "What to expect: accuracy of a classifier that learnt from synthetic images, on real ones (guessing 0.10)."
    if _can_sum(silos):
        yield from _measured(epsilon)
    yield f"Prototype figures (MNIST, 8x8 pixels, 1,000 synthetic images, one seed; real images {REAL_ACCURACY:.2f}),"
    yield "where images times ε are nearest to these from below, or the least that was measured:"
    (images, measured), alone = nearest(ONE_SILO, records, epsilon)
    plain = WITHOUT_PRIVACY[images]
    reached = f"{alone:.2f}, {quality_class(alone)}; not private {plain:.2f}"
    yield f"  one silo, {images:,} images, ε = {measured:g}: {reached}"
    if silos > 1:
        (images, measured), by_method = nearest(TEN_SILOS, records, epsilon)
        yield f"  ten silos, {images:,} images each, ε = {measured:g} each:"
        for method, accuracy in by_method.items():
            yield f"    {accuracy:.2f}  {method}, {quality_class(accuracy)}"
    (images, measured), started = nearest(PUBLIC_START, records, epsilon)
    yield f"  one silo from a close public model, {images:,} images, ε = {measured:g}: {started:.2f}"


def _measured(epsilon: float) -> Iterator[str]:
    """Say what this program reached, at the largest ε that is no larger than asked for, or the least."""
    measured = max((known for known in DIGITS if known <= epsilon), default=min(DIGITS))
    yield f"Measured with this program: ten silos of 144 digits, 8x8 pixels, all classes at each, ε = {measured:g},"
    yield "three seeds; real images 0.95. Only dp-sum at ε = 10 drew digits, all others grey blobs:"
    yield from (f"    {accuracy:.2f}  {method}" for method, accuracy in DIGITS[measured].items())
    yield "Ten silos of 300 images of two digits each, MNIST at 16x16 pixels, ε = 10, 240 steps, one seed:"
    yield from (f"    {accuracy:.2f}  {method}" for method, accuracy in TWO_CLASSES.items())


def _advice(records: int, silos: int, epsilon: float) -> Iterator[str]:
    summed = _can_sum(silos)
    few = records < LEAST_ALONE and epsilon <= 10
    if few:
        yield f"Advice: do not train alone, from nothing: below about {LEAST_ALONE} images the model is of no use."
    if summed:
        yield f"{'Instead' if few else 'Advice'}: where every silo has all classes, one model of all silos by secure"
        yield "sums (strategy = 'dp-sum'; silos need keys), which was best at every point; where each has two classes,"
        yield "the silos' own models (dfd) were better. The order of the other ways differs between the tables."
        if few:
            yield "Or start from a public model (init-from)."
    elif few:
        yield f"Instead: gather more images; or {LEAST_SILOS} silos, from which on one model of all can be"
        yield "trained by secure sums (strategy = 'dp-sum'); or start from a public model (init-from)."
    elif silos > 1:
        yield "Advice: averaged weights (fedavg) were better in the prototypes than the silos' own models (dfd,"
        yield "pooled), and no better on few digits. Try both."
    else:
        yield "Advice: try it, and look at the table of a run beside one with dp-epsilon = 'none'."
    yield "A silo's own model got worse with more steps at the same learning rate (300 images: 250/1,000/4,000 steps"
    yield "0.28/0.24/0.16); dp-sum on MNIST at 16x16 had its best with 240 steps, of 60, 240 and 600."
