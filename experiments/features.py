"""Whether a feature space sees what it should: real images beside real, blurred and noisy ones, and a linear probe.

Real test images are compared with as many real training images, with themselves blurred, and with themselves under
noise. The probe is a logistic regression on standardised features, trained on real training images and tested on the
test images; its baselines are the same network with random weights, and the pixels. All on the images of a folder with
``train/`` and ``test/``:
``python -m experiments.features --data-root FOLDER`` prints both tables and the seconds that they took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from experiments.benchmarks.common import markdown_table, origin
from fedsynth.data import LabelledImages, load_dataset
from fedsynth.data.labelled_images import stratified_split
from fedsynth.evaluation.fidelity import measure
from fedsynth.evaluation.networks.efficientnet import EFFICIENTNET, EfficientNetExtractor
from fedsynth.evaluation.networks.extractor import Extracted, Extractor
from fedsynth.evaluation.networks.extractors import PIXELS, PixelExtractor
from fedsynth.seeding import derive_seed, initial_weights

Images = npt.NDArray[np.uint8]

SEED = 0
NOISE = 20.0
"""Standard deviation in grey levels."""
BLURRED_OVER = 3
REAL = "other real images"
MEASURES = ("frechet-distance", "kernel-distance", "precision", "recall", "density", "coverage")
# Stronger than scikit-learn's own: there are about as many features as images.
PROBE_C = 0.01


def spoiled(images: Images, seed: int) -> dict[str, Images]:
    """Return images (N, H, W, C) blurred over 3 x 3 pixels, and with Gaussian noise, rounded and clipped to 0..255."""
    noise = np.random.default_rng(derive_seed(seed, "noisy-images")).normal(0, NOISE, images.shape)
    return {
        f"blurred over {BLURRED_OVER} x {BLURRED_OVER} pixels": uniform_filter(
            images, (1, BLURRED_OVER, BLURRED_OVER, 1)
        ),
        f"noise of {NOISE:g} grey levels": np.rint(images + noise).clip(0, 255).astype(np.uint8),
    }


def distances(real: Extracted, others: Mapping[str, Extracted]) -> list[dict[str, str]]:
    """Return one row of the table a set."""
    rows = {name: measure(real, other, SEED) for name, other in others.items()}
    return [{"set": name, **{key: f"{row[key]:.3g}" for key in MEASURES}} for name, row in rows.items()]


def probe(
    train: Extracted, train_labels: npt.NDArray[np.integer], test: Extracted, labels: npt.NDArray[np.integer]
) -> float:
    """Return the accuracy on the test images of a linear classifier of features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=300))
    return float(classifier.fit(train.features, train_labels).score(test.features, labels))


def with_random_weights() -> EfficientNetExtractor:
    """Return the extractor with weights as drawn before any training."""
    extractor = EfficientNetExtractor()
    with initial_weights(derive_seed(SEED, "random-weights")):
        for layer in extractor.model.modules():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()
    return extractor


def subset(images: LabelledImages, size: int, purpose: str) -> LabelledImages:
    """Draw ``size`` of the images with their class shares; all of them if there are not more."""
    if size >= len(images):
        return images
    rng = np.random.default_rng(derive_seed(SEED, "features", purpose))
    return images.subset(stratified_split(images.labels, size / len(images), rng)[1])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder with train/ and test/, one folder a class"
    )
    parser.add_argument(
        "--images", type=int, default=1000, help="test images, and of every other set; twice for the probe"
    )
    options = parser.parse_args()
    start = time.process_time()
    folds = load_dataset("imagefolder", options.data_root)
    train, test = subset(folds[0], 2 * options.images, "train"), subset(folds[1], options.images, "test")
    extractor = EfficientNetExtractor()
    of_train, of_test = (extractor.extract(fold.images) for fold in (train, test))
    halves = stratified_split(train.labels, 0.5, np.random.default_rng(derive_seed(SEED, "features", "half")))
    others = {REAL: of_train[np.sort(halves[0])]}
    others |= {name: extractor.extract(images) for name, images in spoiled(test.images, SEED).items()}
    print(f"{len(test)} real test images in {EFFICIENTNET} features beside as many of a set:\n")
    print(markdown_table(distances(of_test, others)) + "\n")
    baselines: dict[str, Extractor] = {
        f"{EFFICIENTNET}, random weights": with_random_weights(),
        PIXELS: PixelExtractor(train.images.shape[1:]),
    }
    sides = {EFFICIENTNET: (of_train, of_test)}
    sides |= {name: (one.extract(train.images), one.extract(test.images)) for name, one in baselines.items()}
    print(f"Linear probe, {len(train)} training images, {len(train.classes)} classes:\n")
    accuracies = {name: probe(side[0], train.labels, side[1], test.labels) for name, side in sides.items()}
    print(markdown_table([{"features": name, "accuracy": f"{share:.3f}"} for name, share in accuracies.items()]))
    print(f"\n{origin()}; {time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
