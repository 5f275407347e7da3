"""Training recipes compared: one silo, the same CPU seconds for each, on digits, MNIST, CIFAR-10 and blood cells.

A model is trained on one silo's images for the budget, and samples are drawn from it in ``--levels`` steps of a
second-order solver. *agree*: share of the samples for which a classifier of real images finds the label asked for;
*utility*: accuracy on real test images of a CNN trained on the samples; *distance*: Fréchet distance to as many real
test images in that classifier's features, *public distance* in those of ``feature-extractor = auto`` (from 32 pixels
on); *copies*: samples nearer to a training image than 19 in 20 test images are.
``python -m experiments.recipes --sets mnist --data-root PATH`` trains what is missing and prints a table per set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.benchmarks.common import machine_facts, publish
from experiments.flow_matching import flow_noise_predictor, train_flow
from experiments.repeated_runs import mean_and_range
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import LabelledImages, load_dataset
from fedsynth.diffusion import (
    EncodedImages,
    TrainingState,
    codec_of,
    exact_variants,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
    train,
)
from fedsynth.evaluation.fidelity import frechet_distance
from fedsynth.evaluation.image_set import stratified_subset
from fedsynth.evaluation.memorisation import Forms, memorisation_of_images
from fedsynth.evaluation.networks.domain_classifier import (
    FEATURE_SPACE,
    DomainClassifier,
    extract_features,
    predict_labels,
    train_domain_classifier,
)
from fedsynth.evaluation.networks.extractors import create_extractor, resolve_extractor
from fedsynth.evaluation.utility import utility_scores
from fedsynth.files import write_json
from fedsynth.output.figures import png_bytes, real_beside_synthetic
from fedsynth.seeding import derive_seed, make_generator
from fedsynth.spec import ImageSpec

Setting = Mapping[str, Scalar]

SETS: dict[str, Setting] = {
    "digits": {"dataset": "digits"},
    "mnist": {"dataset": "mnist"},
    "mnist-16": {"dataset": "mnist", "image-size": 16},
    "cifar10": {"dataset": "cifar10"},
    "cells-32": {"dataset": "imagefolder", "image-size": 32},
    "cells-64": {"dataset": "imagefolder", "image-size": 64},
}
"""Images that are compared on; the folder of each is given by ``--data-root``."""
SILO_IMAGES = 1500
TEST_IMAGES = 1000

RECIPES: dict[str, Setting] = {
    "default": {},
    "paper, small network": {"recipe": "paper", "model": "small"},
    "epsilon": {"prediction": "epsilon"},
    "v": {"prediction": "v"},
    "linear schedule": {"schedule": "linear"},
    "uniform loss": {"loss-weighting": "uniform"},
    "gamma 1": {"snr-gamma": 1.0},
    "gamma 20": {"snr-gamma": 20.0},
    "batch 16": {"batch-size": 16},
    "batch 64": {"batch-size": 64},
    "rate 7e-4": {"learning-rate": 7e-4},
    "rate 3e-3": {"learning-rate": 3e-3},
    "constant rate": {"learning-rate-decay": "constant"},
    "ema .95": {"ema-decay": 0.95},
    "ema .995": {"ema-decay": 0.995},
    "pixels": {"codec": "pixels"},
    "unshuffle-2": {"codec": "unshuffle-2"},
    "unshuffle-4": {"codec": "unshuffle-4"},
    "unshuffle-8": {"codec": "unshuffle-8"},
    "latents": {"codec": "autoencoder"},
    "latents, width 96": {"codec": "autoencoder", "block-out-channels": "96,96"},
    "latents, width 128": {"codec": "autoencoder", "block-out-channels": "128,128"},
    "width 32": {"block-out-channels": "32,32"},
    "width 96": {"block-out-channels": "96,96"},
    "width 128": {"block-out-channels": "128,128"},
    "width 64-128": {"block-out-channels": "64,128"},
    "two layers": {"layers-per-block": 2},
    "flip": {"augment": "flip"},
    "shift": {"augment": "shift"},
    "flip, rotate90": {"augment": "flip,rotate90"},
    "flow": {},
    "flow, middle levels": {},
}
FLOWS = {"flow": "uniform", "flow, middle levels": "logit-normal"}
"""Rows that are trained by :mod:`experiments.flow_matching`; the rest of their recipe is the default."""
MEASURES = ("steps", "ms a step", "agree", "utility", "distance", "public distance", "copies")


class Judge:
    """Real images of a set, and what is measured against them."""

    def __init__(self, name: str, root: str | None) -> None:
        size = SETS[name].get("image-size")
        self.train, test = load_dataset(str(SETS[name]["dataset"]), root, image_size=int(size) if size else None)
        rng = np.random.default_rng(derive_seed(0, "recipes", name))
        self.test = test.subset(stratified_subset(test.labels, min(TEST_IMAGES, len(test)), rng))
        self.classifier: DomainClassifier = train_domain_classifier(
            self.train.images, self.train.labels, len(self.train.classes), 0
        )
        shape = self.train.images.shape[1:]
        public = resolve_extractor("auto", shape)
        self._public = None if public == FEATURE_SPACE else create_extractor(public, shape)

    @property
    def spec(self) -> ImageSpec:
        """Format and classes."""
        return ImageSpec(self.train.images.shape[3], self.train.images.shape[1], self.train.classes)

    def silo(self, seed: int) -> LabelledImages:
        """Return the images that a silo has, others for every seed where there are enough."""
        rng = np.random.default_rng(derive_seed(seed, "recipes", "silo"))
        return self.train.subset(stratified_subset(self.train.labels, min(SILO_IMAGES, len(self.train)), rng))

    def picture(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], per_class: int = 8) -> bytes:
        """Return a PNG of the first real test images of every class beside the first samples, without selection."""
        real = self.test.images, self.test.labels
        return png_bytes(real_beside_synthetic(*real, pixels, labels, self.train.classes, per_class))

    def measure(self, drawn: LabelledImages, silo: LabelledImages, seed: int, forms: Forms) -> dict[str, float]:
        """Compare samples with real images of the same number; ``forms``: in which a model may return its images."""
        rng = np.random.default_rng(derive_seed(seed, "recipes", "measure"))
        count = min(len(drawn), len(self.test))
        ours, real = (part.subset(rng.permutation(len(part))[:count]) for part in (drawn, self.test))
        features = [extract_features(self.classifier, part.images) for part in (real, ours)]
        classes = len(drawn.classes)
        scores = utility_scores(
            drawn.images, drawn.labels, self.test.images, self.test.labels, classes, seed, ("cnn",), num_seeds=1
        )
        found = predict_labels(self.classifier, drawn.images)
        sets = drawn.images, silo.images, self.test.images
        public = {}
        if self._public is not None:
            of_both = [self._public.extract(part.images).features for part in (real, ours)]
            public["public distance"] = frechet_distance(*of_both)
        return public | {
            "agree": float((found == drawn.labels).mean()),
            "utility": scores["cnn"].accuracy,
            "distance": frechet_distance(*features),
            "copies": memorisation_of_images(*sets, forms).copied_share,
        }


def trial(
    judge: Judge, recipe: Setting, seed: int, seconds: float, samples: int, levels: int, flow: str = ""
) -> dict[str, Any]:
    """Train a silo's model by a recipe for some CPU seconds, draw from it, and measure the samples.

    ``flow`` says how flow matching draws its levels; empty: the recipe's own objective.
    """
    config = RunConfig.from_run_config({"seed": seed, **recipe})
    silo, codec = judge.silo(seed), codec_of(config, judge.spec)
    images = EncodedImages(silo.images, codec, config.training.augmentations())
    labels = torch.from_numpy(silo.labels)

    def training(steps: int) -> tuple[TrainingState, float]:
        generator = make_generator(seed, "local-training", "silo-0")
        state = TrainingState(initial_unet(config, judge.spec), config.recipe, generator, steps)
        start = time.process_time()
        if flow:
            train_flow(state, images, labels, config.training, steps, flow)
        else:
            train(state, images, labels, config.training, steps)
        return state, time.process_time() - start

    training(3)  # the first steps of a process are slow
    # The fastest of a few: other work on the machine makes steps slower, and never faster.
    ten_steps = min(training(10)[1] for _ in range(4))
    steps = max(20, round(10 * seconds / ten_steps))
    state, spent = training(steps)
    drawn_labels = torch.arange(samples) % len(silo.classes)
    generator = make_generator(seed, "sampling")
    noise = torch.randn((samples, *codec.shape), generator=generator)
    scheduler = make_scheduler(config.recipe, levels, "dpmsolver++", codec.bound)
    unet = state.averaged_unet()
    if flow:
        predict = flow_noise_predictor(unet, scheduler.alphas_cumprod, codec.bound)
    else:
        predict = noise_predictor(unet, config.recipe, codec.bound)
    pixels = codec.decode(sample(predict, scheduler, noise, drawn_labels, generator))
    drawn = LabelledImages(pixels, drawn_labels.numpy(), silo.classes)
    forms = Forms(exact_variants(config.training.augmentations()), codec.reconstruct)
    cost = {"steps": steps, "ms a step": 1000 * spent / steps}
    return {**cost, **judge.measure(drawn, silo, seed, forms), "pixels": pixels, "labels": drawn.labels}


def _row(name: str, results: list[dict[str, Any]]) -> dict[str, str]:
    measured = [key for key in MEASURES if all(key in result for result in results)]
    return {"recipe": name, **{key: mean_and_range([result[key] for result in results]) for key in measured}}


def main() -> None:
    """Train what is missing and print a table for every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=["digits"])
    parser.add_argument("--recipes", nargs="+", choices=[*RECIPES], default=["default", "paper, small network"])
    parser.add_argument("--data-root", default=None, help="folder of the images, where they are not embedded")
    parser.add_argument("--autoencoder", default=None, help="folder of the autoencoder, for latents")
    parser.add_argument("--seconds", type=float, default=45.0, help="CPU seconds of a training, on one thread")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--levels", type=int, default=15)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sets:
        judge, results = Judge(name, options.data_root), dict[str, list[dict[str, Any]]]()
        for recipe in options.recipes:
            for seed in options.seeds:
                folder = options.output_dir / f"{name}-{options.seconds:g}s" / f"{recipe.replace(' ', '-')}-{seed}"
                setting = _with_autoencoder(RECIPES[recipe], options.autoencoder)
                flow = FLOWS.get(recipe, "")
                results.setdefault(recipe, []).append(_once(folder, judge, setting, seed, options, flow))
            print(_row(recipe, results[recipe]), flush=True)
        rows = [_row(recipe, of_recipe) for recipe, of_recipe in results.items()]
        facts = machine_facts() | {"seeds": options.seeds, "CPU seconds": options.seconds, "samples": options.samples}
        publish(f"recipes-{name}-{options.seconds:g}s", facts, rows, results, options.output_dir)


def _with_autoencoder(recipe: Setting, folder: str | None) -> Setting:
    return {**recipe, "autoencoder": folder} if folder and recipe.get("codec") == "autoencoder" else recipe


def _once(
    folder: Path, judge: Judge, recipe: Setting, seed: int, options: argparse.Namespace, flow: str
) -> dict[str, Any]:
    found = folder / "result.json"
    flat = RunConfig.from_run_config({"seed": seed, **recipe}).recipe.model_dump()
    asked = {"recipe": flat, "chosen": dict(recipe), "samples": options.samples, "levels": options.levels}
    if not found.exists() or json.loads(found.read_text(encoding="utf-8")).get("asked") != asked:
        result = {"asked": asked} | trial(judge, recipe, seed, options.seconds, options.samples, options.levels, flow)
        folder.mkdir(parents=True, exist_ok=True)
        pixels, labels = result.pop("pixels"), result.pop("labels")
        np.savez_compressed(folder / "samples.npz", images=pixels, labels=labels)
        (folder / "samples.png").write_bytes(judge.picture(pixels, labels))
        write_json(found, result)
    return dict(json.loads(found.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
