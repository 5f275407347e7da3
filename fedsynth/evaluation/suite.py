"""All measures of one synthetic dataset, as one row of a results table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from fedsynth.errors import UserError
from fedsynth.evaluation.checks import check_labelled_images, check_same_image_shape
from fedsynth.evaluation.features import FEATURE_SPACE, DomainClassifier, extract_features, train_domain_classifier
from fedsynth.evaluation.fidelity import frechet_distance
from fedsynth.evaluation.manifold import precision_recall_density_coverage
from fedsynth.evaluation.memorisation import Memorisation, memorisation
from fedsynth.evaluation.utility import utility
from fedsynth.seeding import derive_seed

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Progress = Callable[[str], None]

NEIGHBOURS = 5
# Below this many images an estimated covariance biases Fréchet distances upwards noticeably.
ENOUGH_FOR_FRECHET = 2048
# Not the run's seed: runs with different seeds are compared in one and the same feature space.
FEATURE_SEED = 0
# The distance of every image to every other takes long beyond.
MOST_FOR_COPIES = 10_000


@dataclass(frozen=True)
class Fidelity:
    """Synthetic images against the real test fold, in one feature space.

    Attributes:
        n: images on each side.
        k: neighbours of precision, recall, density and coverage.
        feature_space: what the features are.
        frechet_distance: synthetic images against the test fold.
        reference_frechet_distance: real training images against the test fold at the same n. The features come from a
            classifier of the train fold, so this lies a little above what fresh real images would reach.
        precision, recall, density, coverage: synthetic images against the test fold.
    """

    n: int
    k: int
    feature_space: str
    frechet_distance: float
    reference_frechet_distance: float
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Evaluation:
    """The measures of one synthetic dataset.

    Attributes:
        fidelity: how near the synthetic images come to real ones.
        n_train: training images of each utility classifier, synthetic or real.
        utility: test accuracy and macro F1 of classifiers trained on synthetic images.
        real_utility: the same classifiers trained on as many real images: the ceiling.
        notes: what a reader must know about these numbers.
        memorisation: how near the synthetic images come to training images, in pixels; None if it cannot be said.
    """

    fidelity: Fidelity
    n_train: int
    utility: Mapping[str, float]
    real_utility: Mapping[str, float]
    notes: tuple[str, ...] = ()
    memorisation: Memorisation | None = None

    def row(self) -> dict[str, str | int | float]:
        """Return flat, JSON-ready columns in kebab-case; those of the ceiling begin with ``real-``."""
        fidelity = {name.replace("_", "-"): value for name, value in asdict(self.fidelity).items()}
        ceiling = {f"real-{name}": value for name, value in self.real_utility.items()}
        copies = {**self.memorisation.row(), "memorisation-space": "pixels"} if self.memorisation else {}
        utility = {"n-train": self.n_train, **self.utility, **ceiling}
        return {**fidelity, **utility, **copies, "notes": "; ".join(self.notes)}


def evaluate(
    synthetic_images: Images,
    synthetic_labels: Labels,
    train_images: Images,
    train_labels: Labels,
    test_images: Images,
    test_labels: Labels,
    num_classes: int,
    seed: int,
    progress: Progress | None = None,
    classifier: DomainClassifier | None = None,
    real_utility: Mapping[str, float] | None = None,
    trained_on: Images | None = None,
) -> Evaluation:
    """Measure fidelity against the real test fold, and utility beside the real-data ceiling.

    Both sides of a fidelity measure hold n = min(synthetic, train, test) images, both sides of utility n_train =
    min(synthetic, train); larger sets are cut to a random subset that keeps their class shares. Utility is tested on
    the whole test fold. With n <= 5, k is n - 1.

    Args:
        synthetic_images: uint8 (N, H, W, C), at least 2.
        synthetic_labels: integers (N,) from 0 to ``num_classes - 1``; classes may be missing.
        train_images, train_labels: the real train fold.
        test_images, test_labels: the real test fold.
        num_classes: number of classes.
        seed: fixes subsets and utility classifiers, not the feature space.
        progress: called with the name of each phase as it starts.
        classifier: a feature classifier trained on the train fold before; by default one is trained.
        real_utility: that of an earlier evaluation with equal real images, sizes and seed; by default it is measured.
        trained_on: uint8 (M, H, W, C), the images that the generators saw, for the copy check; by default the train
            fold. More than 10,000 are cut to a random subset, and a note says so.

    Raises:
        UserError: images or labels are not as above, differ in size, or a set has fewer than two images.
    """
    report = progress or (lambda phase: None)
    synthetic = _ImageSet("synthetic images", synthetic_images, synthetic_labels)
    train = _ImageSet("real training images", train_images, train_labels)
    test = _ImageSet("real test images", test_images, test_labels)
    for image_set in (train, synthetic, test):
        image_set.check(num_classes, train.images.shape[1:])
    if classifier is None:
        report("training the feature classifier on the real train fold")
        classifier = train_domain_classifier(train.images, train.labels, num_classes, FEATURE_SEED)
    report("measuring fidelity against the real test fold")
    fidelity = _fidelity(classifier, synthetic, train, test, seed)
    n_train = min(synthetic.size, train.size)
    report(f"training classifiers on {n_train} synthetic images")
    synthetic_utility = _utility(synthetic.subset(n_train, seed), test, num_classes, seed)
    if real_utility is None:
        report(f"training classifiers on {n_train} real images")
        real_utility = _utility(train.subset(n_train, seed), test, num_classes, seed)
    report("looking for copies of training images")
    copies, remark = _memorisation(synthetic, train_images if trained_on is None else trained_on, test, seed)
    notes = (*_notes(fidelity, synthetic, num_classes), *remark)
    return Evaluation(fidelity, n_train, synthetic_utility, real_utility, notes, copies)


@dataclass(frozen=True)
class _ImageSet:
    name: str
    images: Images
    labels: Labels

    @property
    def size(self) -> int:
        return len(self.images)

    def check(self, num_classes: int, image_shape: tuple[int, ...]) -> None:
        check_labelled_images(self.name, self.images, self.labels, num_classes)
        check_same_image_shape(self.name, self.images, image_shape)
        if self.size < 2:
            raise UserError(f"{self.name}: 1 image, at least 2 are needed; give more images")

    def subset(self, size: int, seed: int) -> _ImageSet:
        rng = np.random.default_rng(derive_seed(seed, "evaluation-subset", self.name))
        chosen = stratified_subset(self.labels, size, rng)
        return _ImageSet(self.name, self.images[chosen], self.labels[chosen])


def stratified_subset(labels: Labels, size: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return ``size`` distinct, sorted indices with the class shares of ``labels`` up to rounding."""
    quantile = np.empty(len(labels))
    shuffled = rng.permutation(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        quantile[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.sort(np.argsort(quantile)[:size])


def _fidelity(
    classifier: DomainClassifier, synthetic: _ImageSet, train: _ImageSet, test: _ImageSet, seed: int
) -> Fidelity:
    n = min(synthetic.size, train.size, test.size)
    k = min(NEIGHBOURS, n - 1)
    of_synthetic, of_train, of_test = (
        extract_features(classifier, image_set.subset(n, seed).images) for image_set in (synthetic, train, test)
    )
    return Fidelity(
        n=n,
        k=k,
        feature_space=FEATURE_SPACE,
        frechet_distance=frechet_distance(of_test, of_synthetic),
        reference_frechet_distance=frechet_distance(of_test, of_train),
        **precision_recall_density_coverage(of_test, of_synthetic, k),
    )


def _utility(train: _ImageSet, test: _ImageSet, num_classes: int, seed: int) -> dict[str, float]:
    return utility(train.images, train.labels, test.images, test.labels, num_classes, seed)


def _memorisation(
    synthetic: _ImageSet, trained_on: Images, test: _ImageSet, seed: int
) -> tuple[Memorisation | None, tuple[str, ...]]:
    remark: tuple[str, ...] = ()
    if len(trained_on) > MOST_FOR_COPIES:
        rng = np.random.default_rng(derive_seed(seed, "evaluation-subset", "copies"))
        remark = (f"copies were looked for among {MOST_FOR_COPIES} of {len(trained_on)} training images",)
        trained_on = trained_on[np.sort(rng.choice(len(trained_on), MOST_FOR_COPIES, replace=False))]
    flat = (images.reshape(len(images), -1) for images in (synthetic.images, trained_on, test.images))
    try:
        return memorisation(*flat), remark
    except UserError as error:
        return None, (*remark, f"no copy check: {error}")


def _notes(fidelity: Fidelity, synthetic: _ImageSet, num_classes: int) -> tuple[str, ...]:
    notes = []
    if fidelity.n < ENOUGH_FOR_FRECHET:
        notes.append(
            f"n = {fidelity.n} is below {ENOUGH_FOR_FRECHET}: Fréchet distances are biased upwards, compare them at "
            "equal n only"
        )
    if fidelity.k < NEIGHBOURS:
        notes.append(f"k = {fidelity.k} neighbours in place of {NEIGHBOURS}: too few images")
    missing = sorted(set(range(num_classes)) - set(synthetic.labels.tolist()))
    if missing:
        notes.append(f"no synthetic images of class {', '.join(map(str, missing))}")
    return tuple(notes)
