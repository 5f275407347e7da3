"""What three laboratories of white blood cells gain from one synthetic set: read the sweep's runs and make the tables.

After ``fedsynth sweep experiments/three-laboratories.toml --data-root PATH``, and the same of ``-latents.toml``. A
small classifier is trained on each source, real or synthetic, with the same budget, and tested on real images of each
laboratory that nobody trained on.
*Balanced accuracy* is the mean of the classes' recalls, 1/4 by chance; with it stands the ratio to a classifier of the
union of all laboratories' real images. *Distance* is the Fréchet distance to all laboratories' real test images in
``--feature-extractor``, between as many images on both sides. ``python -m experiments.three_laboratories`` prints the
tables and writes two pages of pictures, of which one shows real cells and stays where it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from experiments.benchmarks.common import machine_facts, publish
from fedsynth.cli.sweeps.sweep_manifest import read_manifest
from fedsynth.data import Federation, LabelledImages, load_federation
from fedsynth.diffusion.augmentation import augmented
from fedsynth.evaluation.fidelity import frechet_distance
from fedsynth.evaluation.networks.domain_classifier import predict_labels, train_domain_classifier
from fedsynth.evaluation.networks.extractors import create_extractor, resolve_extractor
from fedsynth.files import write_json
from fedsynth.output import RunFolder
from fedsynth.output.dataset import read_dataset
from fedsynth.seeding import derive_seed, make_generator

LIMITS = (
    "Sources: bccd is the public BCCD set (MIT; cells cut out by apple2373/BCCD), tecom and cellavision the two sets of"
    " zxaoyou/segmentation_WBC (GPL-3; labels by its authors). Limits: bccd has 20 monocytes, cellavision 97 images, of"
    " all of which a fifth is held out; labels of two laboratories are not by experts."
)
STEPS, BATCH_SIZE = 400, 32
"""Budget of a classifier, the same for every source: see :func:`compare_budgets`."""
Scores = Mapping[str, Mapping[str, float]]
"""Source -> laboratory -> balanced accuracy."""
EVERYWHERE = "real, all laboratories"
RESULTS = {
    "copied-share": "near-copies ↓",
    "authenticity": "authentic ↑",
    "test-authenticity": "authentic, real test images",
    "epsilon-membership-auc": "membership AUC (.5 is best)",
    "wall-seconds": "seconds",
}
"""Columns of the runs' own results; near-copies: nearer to a training image than 19 in 20 held-out images are."""


def varied(data: LabelledImages, seed: int, steps: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a classifier's batches: classes drawn equally often, mirrored and turned at random."""
    rng = np.random.default_rng(derive_seed(seed, "three-laboratories", "batches"))
    held = np.unique(data.labels)
    classes = held[rng.permutation(steps * BATCH_SIZE) % len(held)]
    rows = np.array([rng.choice(np.flatnonzero(data.labels == label)) for label in classes])
    pixels = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2)
    generator = make_generator(seed, "three-laboratories", "variants")
    return augmented(pixels, ("flip", "rotate90"), generator).permute(0, 2, 3, 1).numpy(), data.labels[rows]


def recalls(source: LabelledImages, test: LabelledImages, trainings: int, seed: int, steps: int) -> dict[str, float]:
    """Train classifiers on a source and return their mean balanced accuracy at each laboratory of the test images."""
    assert test.silos is not None
    found: dict[str, list[float]] = {name: [] for name in np.unique(test.silos).tolist()}
    for repetition in range(trainings):
        chosen = derive_seed(seed, "three-laboratories", repetition)
        model = train_domain_classifier(
            *varied(source, chosen, steps), len(test.classes), chosen, steps=steps, batch_size=BATCH_SIZE
        )
        right = predict_labels(model, test.images) == test.labels
        for name, values in found.items():
            here = test.silos == name
            of_classes = [right[here & (test.labels == label)].mean() for label in np.unique(test.labels[here])]
            values.append(float(np.mean(of_classes)))
    return {name: fmean(values) for name, values in found.items()}


def compare_budgets(federation: Federation, budgets: Sequence[int], trainings: int, seed: int) -> None:
    """Print what classifiers of real training images reach on a quarter of these after several numbers of steps.

    The held-out test has no part in it, so that a budget can be chosen by it.
    """
    train, rng = federation.train, np.random.default_rng(derive_seed(seed, "three-laboratories", "budget"))
    kept: list[int] = []
    silos = np.empty(len(train), dtype="U40")
    for name, rows in zip(federation.silo_names, federation.parts, strict=True):
        silos[rows] = name
        for label in range(len(train.classes)):
            kept.extend(_quarter(rows[train.labels[rows] == label], rng).tolist())
    validation = replace(train.subset(np.array(kept)), silos=silos[kept])
    rest = np.setdiff1d(np.arange(len(train)), kept)
    for steps in budgets:
        everywhere = recalls(train.subset(rest), validation, trainings, seed, steps)
        alone = {
            name: recalls(train.subset(rest[silos[rest] == name]), validation, trainings, seed, steps)[name]
            for name in federation.silo_names
        }
        print(
            f"{steps} steps: trained on all, {_short(everywhere)}; on the laboratory's own, {_short(alone)}", flush=True
        )


def _quarter(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random quarter of the images of a class, two at least."""
    return rng.permutation(rows)[: max(2, len(rows) // 4)]


def _short(scores: Mapping[str, float]) -> str:
    return f"{', '.join(f'{name} {score:.2f}' for name, score in scores.items())} (mean {fmean(scores.values()):.2f})"


def real_sources(federation: Federation) -> dict[str, LabelledImages]:
    """Return the training images of all laboratories and of each, by the name of their row."""
    train, of_each = federation.train, zip(federation.silo_names, federation.parts, strict=True)
    return {EVERYWHERE: train, **{f"real, {name} alone": train.subset(rows) for name, rows in of_each}}


def synthetic_sources(row: str, folder: RunFolder, federation: Federation) -> Iterator[tuple[str, LabelledImages]]:
    """Yield the synthetic set of a run, or each laboratory's own if it made several, with the name of its row."""
    whole = (folder.synthetic / "provenance.json").is_file()
    for path in [folder.synthetic] if whole else sorted(folder.synthetic.iterdir()):
        made = read_dataset(path)
        name = row if whole else f"{row}, {federation.silo_names[int(path.name.rpartition('-')[2])]} alone"
        yield f"synthetic, {name}", LabelledImages(made.images, made.labels, made.classes)


class Seed:
    """The finished runs of one seed: what was trained on, and tested on, in each of them."""

    def __init__(self, sweeps: Sequence[Path], seed: int) -> None:
        self.seed = seed
        self.results: dict[str, dict[str, Any]] = {}
        self.federations: dict[str, Federation] = {}
        """By the laboratory that was left out; "" where none was."""
        self.sources: dict[str, dict[str, LabelledImages]] = {}
        for sweep, entry in [(folder, entry) for folder in sweeps for entry in read_manifest(folder)]:
            folder = RunFolder(sweep / entry.folder)
            if entry.seed != seed or (results := folder.read_results()) is None:
                continue
            config = folder.read_config()
            left_out = config.data.test_silo
            if left_out not in self.federations:
                self.federations[left_out] = load_federation(config)
                self.sources[left_out] = real_sources(self.federations[left_out])
            self.sources[left_out] |= synthetic_sources(entry.row, folder, self.federations[left_out])
            self.results[entry.row] = results

    def measure(self, folder: Path, trainings: int) -> Mapping[str, Scores]:
        """Return the scores by the laboratory left out, measured unless they are in a file."""
        path = folder / f"balanced-accuracy-{self.seed}.json"
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for left_out, sources in self.sources.items():
            scores = known.setdefault(left_out, {})
            for name, source in sources.items():
                if name not in scores:
                    scores[name] = recalls(source, self.federations[left_out].test, trainings, self.seed, STEPS)
                    write_json(path, known)
                    print(f"seed {self.seed}, {name}: {scores[name]}", flush=True)
        return known

    def distances(self, folder: Path, name: str) -> dict[str, float]:
        """Return the Fréchet distance of every source of all laboratories to real test images, likewise."""
        path = folder / f"distances-{name}-{self.seed}.json"
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        missing = {source: data for source, data in self.sources[""].items() if source not in known}
        if not missing:
            return known
        test = self.federations[""].test
        extractor = create_extractor(name, test.images.shape[1:])
        real = extractor.extract(test.images).features
        for source, data in missing.items():
            rng = np.random.default_rng(derive_seed(self.seed, "three-laboratories", "distance"))
            n = min(len(data), len(test))
            drawn = extractor.extract(data.images[rng.permutation(len(data))[:n]]).features
            known[source] = frechet_distance(real[rng.permutation(len(test))[:n]], drawn)
            write_json(path, known)
        return known

    def pages(self, folder: Path) -> None:
        """Write the first synthetic cells of every class, and a page of these below real ones."""
        sources = self.sources[""]
        synthetic = [data for name, data in sources.items() if name.startswith("synthetic")]
        real = [data for name, data in sources.items() if name.startswith("real") and name != EVERYWHERE]
        page(synthetic, 3).save(folder / f"synthetic-{self.seed}.jpg", quality=90)
        page([*real, *synthetic], 6).save(folder / f"real-and-synthetic-{self.seed}.png")


def page(sources: Iterable[LabelledImages], per_class: int) -> Image.Image:
    """Lay out the first images of every class, a source a row, the classes of a row side by side."""
    rows = []
    for data in sources:
        cells = np.full((len(data.classes), per_class, *data.images.shape[1:]), 255, np.uint8)
        for label in range(len(data.classes)):
            first = data.images[data.labels == label][:per_class]
            cells[label, : len(first)] = first
        apart = np.pad(cells, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(apart.reshape(-1, *apart.shape[2:])), axis=1))
    return Image.fromarray(np.concatenate(rows))


def accuracy_rows(by_seed: Sequence[Scores], distances: Sequence[Mapping[str, float]] = ()) -> list[dict[str, str]]:
    """Return a table's rows: balanced accuracy at each laboratory, and its ratio to that of real images of all.

    ``distances`` of the same seeds become a last column.
    """
    rows = []
    for source in by_seed[0]:
        seeds = [seed for seed in by_seed if source in seed]
        row = {"trained on": source, "seeds": str(len(seeds))}
        for name in seeds[0][source]:
            ratio = fmean(seed[source][name] / seed[EVERYWHERE][name] for seed in seeds)
            row[name] = f"{_mean([seed[source][name] for seed in seeds])}, {ratio:.0%}"
        if distances:
            row["distance ↓"] = _mean([seed[source] for seed in distances if source in seed])
        rows.append(row)
    return rows


def run_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Return a table's rows: what the runs of each method measured themselves."""
    return [
        {"method": row, "seeds": str(len(seeds))}
        | {head: _mean([seed[key] for seed in seeds]) if key in seeds[0] else "-" for key, head in RESULTS.items()}
        for row, seeds in results.items()
    ]


def _mean(values: Sequence[float]) -> str:
    """Return ``mean (lowest … highest)``, of a single value that alone."""
    digits = 2 if fmean(values) < 2 else 0
    spread = f" ({min(values):.{digits}f} … {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def main() -> None:
    """Measure every source of every seed and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sweep", type=Path, nargs="+", default=[Path("runs/three-laboratories")], help="folders of sweeps"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trainings", type=int, default=2, help="classifiers of each source")
    parser.add_argument("--budgets", type=int, nargs="+", help="compare classifiers' steps on training images, no more")
    parser.add_argument("--feature-extractor", default="auto", help="space of the distances")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/three-laboratories-tables"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = [Seed(options.sweep, seed) for seed in options.seeds]
    if options.budgets:
        for seed in seeds:
            compare_budgets(seed.federations[""], options.budgets, options.trainings, seed.seed)
        return
    facts = machine_facts() | {"seeds": options.seeds, "classifiers": f"{options.trainings} of {STEPS} steps a source"}
    measured = [seed.measure(options.output_dir, options.trainings) for seed in seeds]
    space = resolve_extractor(options.feature_extractor, seeds[0].federations[""].test.images.shape[1:])
    distances = [seed.distances(options.output_dir, space) for seed in seeds]
    for left_out in measured[0]:
        title = f"balanced-accuracy-without-{left_out}" if left_out else "balanced-accuracy"
        of_left_out = [seed[left_out] for seed in measured if left_out in seed]
        rows = accuracy_rows(of_left_out, [] if left_out else distances)
        publish(title, facts | {"distances in": space}, rows, of_left_out, options.output_dir)
        print(LIMITS, flush=True)
    results = {row: [seed.results[row] for seed in seeds if row in seed.results] for row in seeds[0].results}
    publish("runs", facts, run_rows(results), results, options.output_dir)
    print(LIMITS, flush=True)
    for seed in seeds:
        seed.pages(options.output_dir)


if __name__ == "__main__":
    main()
