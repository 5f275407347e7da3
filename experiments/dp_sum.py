"""One private model of all silos, on digits or MNIST: which network, which rate, and what is left at which ε.

No Flower and no masks: every silo answers as in a run, its clipped gradients and its share of the noise in whole
numbers, and the answers are added up. *utility*: accuracy on real test images of a CNN trained on the samples; *agree*:
share of the samples for which a classifier of real images finds the label asked for; *AUC*: of the attack on the
model's noise predictions that asks who was trained on (.5 is guessing). ε = inf is the same training with hardly any
noise. ``python -m experiments.dp_sum --settings default --epsilons 10 3 1``
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks.common import machine_facts, publish
from experiments.recipes import SETS, Judge, Setting
from fedsynth.config import RunConfig
from fedsynth.data import LabelledImages
from fedsynth.diffusion import (
    Codec,
    EncodedImages,
    TrainingState,
    codec_of,
    count_parameters,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
)
from fedsynth.diffusion.noise_levels import timestep_at
from fedsynth.evaluation.image_set import matched_by_class
from fedsynth.evaluation.membership import PredictNoise, epsilon_errors, roc
from fedsynth.evaluation.memorisation import Forms
from fedsynth.privacy import noise_multiplier_for
from fedsynth.privacy.dp_training import SummedStep, noised_whole_sum, summed_training_step
from fedsynth.privacy.summed_noise import SummedNoise, fitting_norm
from fedsynth.seeding import make_generator
from strategies.results.membership_inference import LEVELS, MOST_ATTACKED

SETTINGS: dict[str, Setting] = {
    "default": {},
    "default, 32": {"block-out-channels": "32"},
    "pixels": {"codec": "pixels"},
    "pixels, 32": {"codec": "pixels", "block-out-channels": "32"},
    "pixels, digits": {"codec": "pixels", "model": "digits"},
    "blocks of 2": {"codec": "unshuffle-2"},
    "blocks of 2, 32": {"codec": "unshuffle-2", "block-out-channels": "32"},
    "blocks of 8": {"codec": "unshuffle-8"},
    "blocks of 8, 32": {"codec": "unshuffle-8", "block-out-channels": "32"},
    "v": {"prediction": "v"},
    "epsilon": {"prediction": "epsilon"},
}
"""Network and recipe; the rest is the default of ``strategy = "dp-sum"``."""
SUMS: Setting = {"strategy": "dp-sum", "dp-epsilon": 10.0}
"""Whose defaults they are of; the noise is the command line's."""
NO_NOISE = 1e-3
"""Noise multiplier of the trainings without privacy: not one whole number too many is added."""


def membership_auc(
    predict: PredictNoise, codec: Codec, alphas: torch.Tensor, sides: tuple[LabelledImages, LabelledImages], seed: int
) -> float:
    """Attack a model as a run does, at its noise levels; ``sides``: members and others, drawn alike from each class."""
    members, others = sides
    rows = matched_by_class(members.labels, others.labels, MOST_ATTACKED, np.random.default_rng(seed))
    parts = [side.subset(chosen) for side, chosen in zip(sides, rows, strict=True)]
    images = codec.encode(np.concatenate([part.images for part in parts]))
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    timesteps = [timestep_at(alphas, alpha_bar) for alpha_bar in LEVELS]
    generator = make_generator(seed, "membership-inference")
    errors = epsilon_errors(predict, images, labels, timesteps, alphas, generator)
    half = len(parts[0])
    return roc(-errors[:half], -errors[half:]).auc


def trial(
    judge: Judge, setting: Setting, epsilon: float, rate: float, options: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Train one model on all silos' images, draw from it, and measure the samples.

    Args:
        judge: real images.
        setting: network and recipe.
        epsilon: ε towards a server that one silo helps; infinity: hardly any noise.
        rate: learning rate.
        options: of the command line.
        seed: of silos, weights and noise: a measurement may be repeated, a release may not.
    """
    config = RunConfig.from_run_config({**SUMS, "seed": seed, "learning-rate": rate, **setting})
    spec, codec = judge.spec, codec_of(config, judge.spec)
    rng = np.random.default_rng(seed)
    order = np.array_split(rng.permutation(len(judge.train))[: options.images], options.silos)
    silos = [judge.train.subset(rows) for rows in order]
    images = sum(map(len, silos))
    private = math.isfinite(epsilon)
    sigma = noise_multiplier_for(epsilon, 1e-5, options.sampling_rate, options.steps) if private else NO_NOISE
    weights = count_parameters(config, spec)
    norm = fitting_norm(sigma, len(silos), 1, images, weights)
    noise = SummedNoise(sigma, len(silos), 1, norm)
    step = SummedStep(noise, options.sampling_rate, options.clip, options.multiplicity, memory_bytes=2**28)
    unet = initial_unet(config, spec)
    state = TrainingState(unet, config.recipe, torch.Generator(), options.steps)
    parts = [(EncodedImages(silo.images, codec, ()), torch.from_numpy(silo.labels)) for silo in silos]
    denominator = options.sampling_rate * images
    start = time.process_time()
    for _ in range(options.steps):
        answers = [noised_whole_sum(unet, config.recipe, *part, step, rng.bytes) for part in parts]
        summed_training_step(state, torch.from_numpy(sum(answers)), options.clip, norm, denominator)
    spent = time.process_time() - start
    labels = torch.arange(options.samples) % len(spec.classes)
    generator = make_generator(seed, "sampling")
    start_noise = torch.randn((options.samples, *codec.shape), generator=generator)
    scheduler = make_scheduler(config.recipe, options.levels, "sde-dpmsolver++", codec.bound)
    predict = noise_predictor(state.averaged_unet(), config.recipe, codec.bound)
    pixels = codec.decode(sample(predict, scheduler, start_noise, labels, generator))
    drawn = LabelledImages(pixels, labels.numpy(), spec.classes)
    measured = judge.measure(drawn, judge.train, seed, Forms(reconstruct=codec.reconstruct))
    alphas = make_scheduler(config.recipe).alphas_cumprod
    members = judge.train.subset(np.concatenate(order))
    found = membership_auc(predict, codec, alphas, (members, judge.test), seed)
    return {"weights": weights, "noise multiplier": sigma, "seconds": spent} | measured | {"AUC": found}


def main() -> None:
    """Train every combination and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=["default"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[10.0], help="inf: without noise")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3])
    parser.add_argument("--set", choices=[*SETS], default="digits")
    parser.add_argument("--data-root", default=None, help="folder of the images, where they are not embedded")
    parser.add_argument("--images", type=int, default=None, help="of all silos; default: all there are")
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sampling-rate", type=float, default=0.5)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--multiplicity", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--levels", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/dp-sum"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(options.set, options.data_root)
    rows: list[dict[str, str]] = []
    for name in options.settings:
        for epsilon in options.epsilons:
            for rate in options.rates:
                for seed in options.seeds:
                    result = trial(judge, SETTINGS[name], epsilon, rate, options, seed)
                    shown = {key: f"{value:.3g}" for key, value in result.items()}
                    rows.append({"setting": name, "ε": f"{epsilon:g}", "rate": f"{rate:g}", "seed": str(seed), **shown})
                    print(rows[-1], flush=True)
    facts = machine_facts() | {key: value for key, value in vars(options).items() if key != "output_dir"}
    publish("dp-sum", facts, rows, rows, options.output_dir)


if __name__ == "__main__":
    main()
