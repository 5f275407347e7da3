"""All measures of synthetic datasets against one set of real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsynth.config import AUTO, RunConfig
from fedsynth.diffusion import pick_device
from fedsynth.duplicates import count_shared
from fedsynth.errors import UserError
from fedsynth.evaluation.array_checks import ENOUGH_FOR_FRECHET
from fedsynth.evaluation.cache import classifier_cached, extract_cached, scores_cached
from fedsynth.evaluation.evaluation import Evaluation, Utility
from fedsynth.evaluation.fidelity import fidelity_measures
from fedsynth.evaluation.illustration import EMBEDDED, Illustration, embed, nearest_triples
from fedsynth.evaluation.image_set import Images, ImageSet, Labels, flat, matched_by_class
from fedsynth.evaluation.membership import Membership, nearness_scores, roc
from fedsynth.evaluation.memorisation import AS_THEY_ARE, Forms, Memorisation, memorisation_of_images
from fedsynth.evaluation.networks.domain_classifier import FEATURE_SPACE
from fedsynth.evaluation.networks.extractor import Extracted, Extractor
from fedsynth.evaluation.networks.extractors import create_extractor, resolve_extractor
from fedsynth.evaluation.networks.resnet import resnet_origin
from fedsynth.evaluation.utility import DEFAULT_CLASSIFIERS, Scores
from fedsynth.seeding import derive_seed

Progress = Callable[[str], None]

NEIGHBOURS = 5
# A guess: below this many images a neighbour, each of the k is so far away that nearly all images are within reach.
IMAGES_PER_NEIGHBOUR = 20
# Not the run's seed: runs with different seeds are compared in one and the same feature space.
FEATURE_SEED = 0
# The distances of all pairs take too long beyond this many training images and their variants.
MAX_FOR_COPIES = 10_000


@dataclass(frozen=True)
class Settings:
    """How to measure; the names are configuration keys.

    Attributes:
        feature_extractor: one of ``EXTRACTORS``; ``auto``: what :func:`resolve_extractor` says.
        feature_extractor_weights_path: file of its weights; None: torch hub's folder, or a download.
        classifiers: those that are trained on the synthetic images.
        classifier_seeds: trainings of each.
        resnet_weights_path: file of the weights that ``resnet`` starts from; None: torch hub's, or none.
        cache: folder for features, feature classifiers and the scores on real images; None: nothing is kept.
        device: where networks that are not trained here compute.
    """

    feature_extractor: str = AUTO
    feature_extractor_weights_path: Path | None = None
    classifiers: tuple[str, ...] = DEFAULT_CLASSIFIERS
    classifier_seeds: int = 3
    resnet_weights_path: Path | None = None
    cache: Path | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, config: RunConfig) -> Settings:
        """Read the settings of a run; what is kept goes below ``state-dir``."""
        asked = config.evaluation
        return cls(
            feature_extractor=asked.feature_extractor,
            feature_extractor_weights_path=_path(asked.feature_extractor_weights_path),
            classifiers=asked.classifier_names(),
            classifier_seeds=asked.classifier_seeds,
            resnet_weights_path=_path(asked.resnet_weights_path),
            cache=Path(config.run.state_dir) / "evaluation",
            device=str(pick_device(config.run.device)),
        )

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Load what has to be loaded, before the work whose result it is to measure.

        Raises:
            UserError: weights cannot be had.
        """
        name = resolve_extractor(self.feature_extractor, image_shape, self.feature_extractor_weights_path)
        if name != FEATURE_SPACE:
            create_extractor(name, image_shape, None, self.feature_extractor_weights_path, self.device)
        if "resnet" in self.classifiers:
            resnet_origin(self.resnet_weights_path)


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


class Evaluator:
    """Measures synthetic sets against the same real images.

    What concerns the real images alone, features and classifiers, is computed once for all sets.

    Args:
        train: the real train fold.
        test: the real test fold.
        classes: names of the classes.
        seed: fixes subsets and utility classifiers, not the feature space.
        settings: how to measure.
        trained_on: the images that the generators saw, for the copy check and the attack; by default the train fold.
        progress: called with the name of each phase as it starts.
        forms: in which the generators may return an image that they saw, for the copy check and the attack.

    Raises:
        UserError: images or labels that do not fit together, or fewer than two images.
    """

    def __init__(
        self,
        train: ImageSet,
        test: ImageSet,
        classes: Sequence[str],
        seed: int,
        settings: Settings | None = None,
        trained_on: ImageSet | None = None,
        progress: Progress | None = None,
        forms: Forms = AS_THEY_ARE,
    ) -> None:
        self._train = train
        self._test = test
        self._classes = tuple(classes)
        self._seed = seed
        self._settings = settings or Settings()
        self._trained_on = trained_on or train
        for image_set in (train, test, self._trained_on):
            image_set.check(len(classes), train.images.shape[1:])
        self._report = progress or (lambda phase: None)
        self._forms = forms
        self._ceilings: dict[int, dict[str, Scores]] = {}

    def evaluate(self, images: Images, labels: Labels, illustrated: bool = False) -> Evaluation:
        """Measure fidelity against the real test fold, utility beside the real-data ceiling, and signs of copies.

        Both sides of a fidelity measure hold n = min(synthetic, train, test) images, both sides of utility n_train =
        min(synthetic, train); larger sets are cut to a random subset that keeps their class shares. Utility is tested
        on the whole test fold. With n <= 5, k is n - 1.

        Args:
            images: uint8 (N, H, W, C), at least 2, in the format of the real ones.
            labels: integers (N,), indices of the classes; classes may be missing.
            illustrated: whether to gather what a report's pictures need too.

        Raises:
            UserError: images or labels are not as above, or measures that no images of this kind can have.
        """
        synthetic = ImageSet("synthetic images", images, labels)
        synthetic.check(len(self._classes), self._train.images.shape[1:])
        fidelity, reference = self._fidelity(synthetic)
        n_train = min(len(synthetic), len(self._train))
        of_synthetic, of_real, of_both = self._utility(synthetic, n_train)
        self._report("looking for copies of training images")
        copies, remarks = self._copies(synthetic)
        return Evaluation(
            feature_space=self.extractor.name,
            fidelity=fidelity,
            reference=reference,
            n_train=n_train,
            utility=of_synthetic,
            real_utility=of_real,
            joint_utility=of_both,
            classes=self._classes,
            notes=(*self._notes(fidelity, synthetic), *remarks),
            memorisation=copies,
            membership=self._membership(synthetic),
            illustration=self._illustration(synthetic, copies) if illustrated else None,
        )

    @cached_property
    def extractor(self) -> Extractor:
        """What makes features of images, trained or loaded when first asked for."""
        settings = self._settings
        shape = self._train.images.shape[1:]
        name = resolve_extractor(settings.feature_extractor, shape, settings.feature_extractor_weights_path)
        classifier = None
        if name == FEATURE_SPACE:
            self._report("training the feature classifier on the real train fold")
            real = self._train.images, self._train.labels
            classifier = classifier_cached(*real, len(self._classes), FEATURE_SEED, settings.cache)
        return create_extractor(name, shape, classifier, settings.feature_extractor_weights_path, settings.device)

    def _extract(self, image_set: ImageSet) -> Extracted:
        return extract_cached(self.extractor, image_set.images, self._settings.cache)

    def _fidelity(self, synthetic: ImageSet) -> tuple[dict[str, Any], dict[str, Any]]:
        n = min(len(synthetic), len(self._train), len(self._test))
        extractor = self.extractor
        self._report(f"measuring fidelity against the real test fold in {extractor.name}")
        sides = [image_set.subset(n, self._seed) for image_set in (self._test, synthetic, self._train)]
        of_test, *others = (self._extract(side) for side in sides)
        labels = [side.labels for side in sides]
        k = min(NEIGHBOURS, n - 1)
        of_synthetic, of_train = (
            fidelity_measures(of_test, other, labels[0], its_labels, self._classes, self._seed, k)
            for other, its_labels in zip(others, labels[1:], strict=True)
        )
        return of_synthetic, of_train

    def _utility(self, synthetic: ImageSet, n_train: int) -> tuple[Utility, Utility, Utility]:
        fair, real = (image_set.subset(n_train, self._seed) for image_set in (synthetic, self._train))
        if n_train not in self._ceilings:
            self._report(f"training classifiers on {n_train} real images")
            self._ceilings[n_train] = self._scores(real, self._settings.cache)
        self._report(f"training classifiers on {n_train} synthetic images")
        of_synthetic = self._scores(fair)
        self._report(f"training classifiers on {n_train} real and {n_train} synthetic images")
        return of_synthetic, self._ceilings[n_train], self._scores(real.joined(fair))

    def _scores(self, train: ImageSet, cache: Path | None = None) -> dict[str, Scores]:
        return scores_cached(
            cache,
            train.images,
            train.labels,
            self._test.images,
            self._test.labels,
            len(self._classes),
            self._seed,
            self._settings.classifiers,
            self._settings.classifier_seeds,
            self._settings.resnet_weights_path,
            self._settings.device,
        )

    def _copies(self, synthetic: ImageSet) -> tuple[Memorisation | None, tuple[str, ...]]:
        remark: tuple[str, ...] = ()
        seen = self._compared()
        if len(seen) < len(self._trained_on):
            remark = (f"copies were looked for among {len(seen)} of {len(self._trained_on)} training images",)
        try:
            sets = synthetic.images, seen.images, self._test.images
            return memorisation_of_images(*sets, self._forms), remark
        except UserError as error:
            return None, (*remark, f"no copy check: {error}")

    def _compared(self) -> ImageSet:
        return self._trained_on.subset(MAX_FOR_COPIES // (1 + len(self._forms.variants)), self._seed)

    def _membership(self, synthetic: ImageSet) -> Membership | None:
        """Attack the released images: is a training image nearer to them than a test image of its class?"""
        rng = np.random.default_rng(derive_seed(self._seed, "membership-of-released"))
        rows = matched_by_class(self._trained_on.labels, self._test.labels, MAX_FOR_COPIES, rng)
        if len(rows[0]) < 2:
            return None
        sides = self._trained_on.images[rows[0]], self._test.images[rows[1]]
        return roc(*(self._nearness(side, synthetic) for side in sides))

    def _nearness(self, candidates: Images, synthetic: ImageSet) -> npt.NDArray[np.float64]:
        """Score candidates by the form of them that lies nearest to a synthetic image."""
        forms = self._forms.seen(candidates)
        nearest: npt.NDArray[np.float64] = np.max(
            [nearness_scores(flat(form), flat(synthetic.images)) for form in forms], axis=0
        )
        return nearest

    def _illustration(self, synthetic: ImageSet, copies: Memorisation | None) -> Illustration:
        self._report("laying out the images for the report")
        seen = self._compared()
        sides = [side.subset(EMBEDDED, self._seed) for side in (self._test, synthetic)]
        real, fake = ((self._extract(side).features, side.labels) for side in sides)
        return Illustration(
            triples=nearest_triples(
                synthetic.images,
                seen.images,
                self._seed,
                copies.copy_distance if copies else math.nan,
                self._forms,
            ),
            embedding=embed(real, fake, self.extractor.name, self._seed),
        )

    @cached_property
    def _shared(self) -> int:
        """How many images of the test fold are in the train fold too."""
        return count_shared(self._test.images, self._train.images)

    def _notes(self, fidelity: Mapping[str, Any], synthetic: ImageSet) -> tuple[str, ...]:
        n, k = fidelity["overall"]["n"], fidelity["overall"]["k"]
        notes = []
        if n < ENOUGH_FOR_FRECHET:
            notes.append(
                f"n = {n} is below {ENOUGH_FOR_FRECHET}: Fréchet distances are biased upwards, compare them at equal n"
                " only; the kernel distance depends on n far less"
            )
        if n < IMAGES_PER_NEIGHBOUR * k:
            notes.append(
                f"n = {n} is few for neighbourhoods of k = {k}, which then reach far: precision, recall, density and"
                " coverage come near 1 for poor images too; look at the accuracies"
            )
        if self._shared:
            notes.append(f"{self._shared} of {len(self._test)} real test images are real training images too")
        if k < NEIGHBOURS:
            notes.append(f"k = {k} neighbours instead of {NEIGHBOURS}: too few images")
        present = set(synthetic.labels.tolist())
        if missing := [name for index, name in enumerate(self._classes) if index not in present]:
            notes.append(f"no synthetic images of class {', '.join(missing)}")
        if fidelity["left-out"]:
            notes.append(f"no fidelity of class {', '.join(fidelity['left-out'])} alone: too few images, or all alike")
        if "resnet" in self._settings.classifiers:
            notes.append(resnet_origin(self._settings.resnet_weights_path))
        return tuple(notes)
