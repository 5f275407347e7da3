"""Say which noise a private training needs, what quality to expect of it, and what to do instead."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from fedsynth.cli.options import given_keys, refuse_rest
from fedsynth.config.privacy import Privacy
from fedsynth.config.run_config import KEYS, RunConfig
from fedsynth.errors import UserError
from fedsynth.privacy.accounting import noise_multiplier_for
from fedsynth.privacy.expectations import (
    LEAST_ALONE,
    ONE_SILO,
    PUBLIC_START,
    REAL_ACCURACY,
    TEN_SILOS,
    WITHOUT_PRIVACY,
    nearest,
    quality_class,
)

TAKEN = ("dp-delta", "dp-sampling-rate", "dp-steps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many images and silos there are, which ε is aimed at, and the keys that decide about the noise."""
    parser.add_argument("--records", type=int, required=True, metavar="N", help="training images of a silo")
    parser.add_argument("--silos", type=int, default=1, metavar="K", help="silos of about as many images (default: 1)")
    parser.add_argument("--epsilon", type=float, required=True, metavar="ε", help="what would be dp-epsilon")
    for name in TAKEN:
        key = KEYS[name]
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"{key.meaning}; {key.allowed} (default: {key.default})")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the plan."""
    refuse_rest("privacy-plan", rest, ("--records", "--silos", "--epsilon", *(f"--{name}" for name in TAKEN)))
    for name in ("records", "silos"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be a whole number >= 1")
    keys = RunConfig.from_run_config({"dp-epsilon": options.epsilon, **given_keys(options, TAKEN)}).privacy
    if keys.dp_delta * options.records > 1:
        raise UserError(f"--dp-delta {keys.dp_delta:g}: must be <= 1 / records = {1 / options.records:.3g}")
    print("\n".join(_lines(keys, options.records, options.silos)))
    return 0


def _lines(keys: Privacy, records: int, silos: int) -> Iterator[str]:
    epsilon = float(keys.dp_epsilon)
    rate, steps = keys.dp_sampling_rate, keys.dp_steps
    sigma = noise_multiplier_for(epsilon, keys.dp_delta, rate, steps)
    noise = sigma / (rate * records * math.sqrt(steps))
    yield f"{silos} silo{'s' if silos > 1 else ''} of {records:,} images, ε = {epsilon:g}, δ = {keys.dp_delta:g}:"
    yield "private as to one image of a silo more or less"
    yield f"  noise multiplier σ   {sigma:.2f}"
    yield f"  sampling rate q      {rate:g}: a step sees {rate * records:.0f} images in the mean"
    yield f"  steps                {steps}"
    yield f"  noise                {noise:.2g}: σ / (q n √steps), which decides about the quality where σ > 2"
    yield ""
    yield "What to expect: accuracy of a classifier that learnt from 1,000 synthetic images, on real ones."
    yield f"Prototype figures (MNIST, 8x8 pixels, one seed; real images {REAL_ACCURACY:.2f}, guessing 0.10),"
    yield "where images times ε are nearest to these from below, or the least that was measured:"
    yield from _expected(records, silos, epsilon)
    yield ""
    yield from _advice(records, silos, epsilon)


def _expected(records: int, silos: int, epsilon: float) -> Iterator[str]:
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


def _advice(records: int, silos: int, epsilon: float) -> Iterator[str]:
    if records < LEAST_ALONE and epsilon <= 10:
        yield f"Advice: do not train alone, from nothing: below about {LEAST_ALONE} images the model is of no use."
        yield "Instead: gather more images or more silos, and average weights (strategy = 'fedavg') rather than ask"
        yield "silos' own models; or start from a public model of similar images (init-from)."
    elif quality_class(nearest(ONE_SILO, records, epsilon)[1]) == "good" or silos == 1:
        yield "Advice: try it, and look at the table of a run beside one with dp-epsilon = 'none'."
    else:
        yield "Advice: prefer strategies that average weights (fedavg) to those of silos' own models (dfd, pooled)."
    yield "More steps at the same learning rate made it worse (300 images: 250/1,000/4,000 steps 0.28/0.24/0.16)."
