"""Where cooperation beats pooling: overlap of the silos x images per silo x noisy models, on digits.

Every regime has its silos and their own models; every mode makes a set from the same models, labels and first noise,
so that rows can be paired by seed. Noisy models are the silos' models with noise on every weight, a stand-in for
private training. ``python -m experiments.regimes`` runs what is missing and prints one table per regime: means over the
seeds and, for the Fréchet distance and the accuracy, the difference to pooled sampling of every seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging

from clients.models.local_model import LocalModel
from experiments import cooperation
from experiments.benchmarks.common import machine_facts, publish
from fedsynth.api.in_process_run import begin_run, silos_with
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import Federation, load_federation
from fedsynth.diffusion import ClassConditionalDDPMPipeline
from fedsynth.evaluation import Evaluator, ImageSet, Settings
from fedsynth.files import atomic_directory, nonfinite_as_null, write_json
from fedsynth.seeding import make_generator
from strategies.base import Outcome

BASE: dict[str, Scalar] = {
    "train-steps": 500,
    "classifier-seeds": 1,
    "classifiers": "logistic-regression,cnn",
    "device": "cpu",
    "membership-inference": False,
    "num-samples": 500,
    "output-dir": "runs",
}
PARTITIONS: dict[str, dict[str, Scalar]] = {
    "iid": {"partition": "iid"},
    "dirichlet 1": {"partition": "dirichlet", "alpha": 1.0},
    "dirichlet 0.1": {"partition": "dirichlet", "alpha": 0.1},
}
IMAGES: dict[int, dict[str, Scalar]] = {
    40: {"samples-per-client": 40},
    80: {"samples-per-client": 80},
    144: {"samples-per-client": 0},
}
NOISE = 0.15
"""Standard deviation of the noise on the weights of noisy models, in that of each tensor."""

MODES: dict[str, dict[str, Scalar]] = {
    "pooled": {"strategy": "pooled"},
    "posterior": {"strategy": "dfd"},
    "tempered posterior": {"strategy": "dfd", "temperature": 10.0},
    "constant": {"strategy": "dfd", "weights": "constant"},
    "pooled, dpmsolver++": {"strategy": "pooled", "sampler": "dpmsolver++"},
    "constant, dpmsolver++": {"strategy": "dfd", "sampler": "dpmsolver++"},
}
"""The first four draw with sde-dpmsolver++, each beside the pooled sampling of its own sampler."""

COLUMNS = {key: head for key, head in cooperation.COLUMNS.items() if key != "rounds"}
PAIRED = {"frechet-distance": "distance − pooled's", "accuracy-cnn": "CNN − pooled's"}


@dataclass(frozen=True)
class Regime:
    """Silos of one kind.

    Attributes:
        partition: key of :data:`PARTITIONS`.
        images: mean images per silo, key of :data:`IMAGES`.
        noisy: whether their models are.
    """

    partition: str
    images: int
    noisy: bool

    def __str__(self) -> str:
        return f"{self.partition}, {self.images} images per silo, {'noisy' if self.noisy else 'exact'} models"


class Bench:
    """The silos of one regime and seed, whose models are trained once, and what it takes to try modes on them."""

    def __init__(self, regime: Regime, seed: int, trained: Mapping[str, Scalar], state_dir: Path) -> None:
        self._regime = regime
        self._settings = {**BASE, **trained, **PARTITIONS[regime.partition], **IMAGES[regime.images], "seed": seed}
        self._settings["state-dir"] = str(state_dir.absolute())
        config = RunConfig.from_run_config(self._settings)
        self._federation = load_federation(config)
        self._evaluator = _evaluator(self._federation, config)

    def measure(self, mode: str) -> dict[str, Any]:
        """Make a set in one of :data:`MODES` and return its columns of results."""
        outcome = self._synthesise({**self._settings, **MODES[mode]}, self._regime.noisy)
        return self._evaluator.evaluate(outcome.images, outcome.labels).row()

    def _synthesise(self, settings: Mapping[str, Scalar], noisy: bool) -> Outcome:
        silos = silos_with(self._noisy_model) if noisy else None
        return begin_run(settings, self._federation, silos).outcome()

    def _noisy_model(self, partition: int) -> dict[str, Any]:
        """Return the node config of a silo that brings its own model with noise on the weights."""
        folder = self._own_model(partition)
        noisy = folder.parents[1] / "noisy" / f"{folder.name}-{NOISE:g}"
        if not noisy.is_dir():
            pipeline = ClassConditionalDDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
            add_noise(pipeline.unet, make_generator(int(self._settings["seed"]), "weight-noise", partition))
            with atomic_directory(noisy) as temporary:
                pipeline.save_pretrained(temporary)
        return {"model-path": str(noisy)}

    def _own_model(self, partition: int) -> Path:
        config = RunConfig.from_run_config({**self._settings, **MODES["pooled"]})
        silo = self._federation.silo(partition, config)
        model = LocalModel(silo, self._federation.spec, config, Path(config.run.state_dir) / silo.name)
        if not model.finished:
            self._synthesise(config.to_run_config(), noisy=False)
        return model.folder


@torch.no_grad()
def add_noise(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Add normal noise to every weight, of :data:`NOISE` times the standard deviation of its tensor."""
    for weight in network.parameters():
        if weight.numel() > 1:
            weight.add_(NOISE * weight.std() * torch.randn(weight.shape, generator=generator))


def _evaluator(federation: Federation, config: RunConfig) -> Evaluator:
    silos = [federation.silo(k, config).train for k in range(config.run.num_clients)]
    images, labels = (np.concatenate([getattr(silo, name) for silo in silos]) for name in ("images", "labels"))
    train, test = federation.train, federation.test
    return Evaluator(
        ImageSet("real training images", train.images, train.labels),
        ImageSet("real test images", test.images, test.labels),
        federation.spec.classes,
        config.run.seed,
        Settings.of(config),
        trained_on=ImageSet("images that silos trained on", images, labels),
    )


def results_of(
    regime: Regime, seed: int, modes: Sequence[str], trained: Mapping[str, Scalar], folder: Path, state_dir: Path
) -> dict[str, Any]:
    """Return the columns of every mode for one regime and seed, measured unless they are in ``folder``."""
    path = folder / f"{regime}, seed {seed}.json".replace(", ", "-").replace(" ", "-")
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = [mode for mode in modes if mode not in known]
    bench = Bench(regime, seed, trained, state_dir) if missing else None
    for mode in missing:
        assert bench is not None
        known[mode] = bench.measure(mode)
        write_json(path, nonfinite_as_null(known))
        said = ", ".join(f"{head} {known[mode][key]:.3g}" for key, head in COLUMNS.items())
        print(f"{regime}, seed {seed}, {mode}: {said}", flush=True)
    return known


def _row(mode: str, by_seed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    pooled = "pooled, dpmsolver++" if "dpmsolver++" in mode else "pooled"
    means = {head: f"{fmean(seed[mode][key] for seed in by_seed):.3g}" for key, head in COLUMNS.items()}
    paired = {
        head: " ".join(f"{seed[mode][key] - seed[pooled][key]:+.2g}" for seed in by_seed)
        for key, head in PAIRED.items()
    }
    return {"mode": mode, **means, **paired}


def main() -> None:
    """Measure every mode in every regime and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--partitions", nargs="+", default=["iid", "dirichlet 0.1"], choices=[*PARTITIONS])
    parser.add_argument("--images", type=int, nargs="+", default=[40, 144], choices=[*IMAGES])
    parser.add_argument("--modes", nargs="+", default=[*MODES], choices=[*MODES])
    parser.add_argument("--models", nargs="+", default=["exact", "noisy"], choices=["exact", "noisy"])
    parser.add_argument("--recipe", default="default", choices=["default", "paper"])
    parser.add_argument(
        "--train-steps", type=int, default=BASE["train-steps"], help="optimiser steps of a silo's model"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/regimes"), help="a folder below it for every recipe"
    )
    parser.add_argument("--state-dir", type=Path, default=Path(".fedsynth"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    trained: dict[str, Scalar] = {"recipe": options.recipe, "train-steps": options.train_steps}
    folder = options.output_dir / f"{options.recipe}-{options.train_steps}"
    measured = list(dict.fromkeys(["pooled", "pooled, dpmsolver++", *options.modes]))
    for partition, images, models in product(options.partitions, options.images, options.models):
        regime = Regime(partition, images, models == "noisy")
        by_seed = [results_of(regime, s, measured, trained, folder, options.state_dir) for s in options.seeds]
        rows = [_row(mode, by_seed) for mode in measured]
        facts = machine_facts() | trained | {"regime": str(regime), "seeds": options.seeds}
        publish(str(regime).replace(", ", "-").replace(" ", "-"), facts, rows, by_seed, folder)


if __name__ == "__main__":
    main()
