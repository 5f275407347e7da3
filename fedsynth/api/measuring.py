"""How good any labelled images are, against real ones: what ``fedsynth evaluate`` does, for folders and in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsynth.api.image_folders import conversions, dataset_root, read_real, read_synthetic
from fedsynth.api.images_in_memory import InMemory, is_pair_of_arrays, labelled_images
from fedsynth.api.keywords import flat
from fedsynth.api.run import Run
from fedsynth.config import RunConfig, keys_of
from fedsynth.data import LabelledImages, split_test, visible_folders
from fedsynth.diffusion import AUTOENCODER, codec_of, exact_variants
from fedsynth.errors import UserError, unknown_choice
from fedsynth.evaluation import Evaluation, Evaluator, ImageSet, Settings
from fedsynth.evaluation.memorisation import Forms
from fedsynth.files import parse_json
from fedsynth.output import SyntheticDataset
from fedsynth.output.dataset import PROVENANCE
from fedsynth.spec import ImageSpec

logger = logging.getLogger("fedsynth")

SYNTHETIC, REAL = "synthetic images", "real images"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, and against what.

    Attributes:
        synthetic: the images, in the format of the real ones.
        test: the real test fold.
        evaluation: the measures.
    """

    synthetic: LabelledImages
    test: LabelledImages
    evaluation: Evaluation


def evaluate(
    synthetic: str | Path | Run | InMemory, real: str | Path | InMemory | tuple[InMemory, InMemory], **keywords: Any
) -> Evaluation:
    """Measure labelled images against real ones: fidelity, coverage, use for training, and signs of copies.

    ``evaluate(…).row()`` has all numbers by name. They are those of ``fedsynth evaluate`` for the same images.

    Args:
        synthetic: a folder with one folder a class, a run or its folder, a set of ours (such as ``Run.dataset``),
            ``(images, labels)``, or a dataset of torchvision or Hugging Face's ``datasets``. Images are uint8
            (N, H, W, C), C = 1 or 3, or (N, H, W), labels integers (N,). A folder is read in the format of the real
            images; what is in memory must have it.
        real: the same, but for runs; or a pair of them, train and test fold. Of a set that has no folds, one image in
            five of each class is for testing. In a pair both must be in memory.
        **keywords: configuration keys that ``fedsynth evaluate`` takes, in snake case, such as ``classifiers``,
            ``feature_extractor`` and ``seed``. Features of the real images are kept below ``state_dir``.

    Raises:
        UserError: images cannot be read, the two sets do not fit each other, or a key is not one of these.
    """
    given, known = flat(keywords), keys_of("evaluate")
    for key in given:
        if key not in known:
            raise unknown_choice("key", key, sorted(known))
    config = RunConfig.from_run_config({**given, "dataset": "imagefolder"})
    return measure(synthetic, real, config).evaluation


def measure(
    synthetic: str | Path | Run | InMemory,
    real: str | Path | InMemory | tuple[InMemory, InMemory],
    config: RunConfig,
    illustrated: bool = False,
) -> Measured:
    """Do :func:`evaluate`.

    Args:
        synthetic: as there.
        real: as there.
        config: how to read images, and how to measure.
        illustrated: whether to gather what a report's pictures need too.

    Raises:
        UserError: as there.
    """
    settings = Settings.of(config)
    given = synthetic.dataset if isinstance(synthetic, Run) else synthetic
    source = dataset_root(Path(given).expanduser()) if isinstance(given, str | Path) else given
    if isinstance(real, str | Path):
        held = visible_folders(source) if isinstance(source, Path) else labelled_images(SYNTHETIC, source).classes
        train, test = read_real(Path(real).expanduser(), held, config)
    else:
        train, test = _real_in_memory(real, config.run.seed)
    settings.check(train.images.shape[1:])
    converted: tuple[str, ...] = ()
    if not isinstance(source, Path):
        made = labelled_images(SYNTHETIC, source, train.classes)
    else:
        made = read_synthetic(source, train, config)
        converted = conversions(source, Path(real).expanduser(), train) if isinstance(real, str | Path) else ()
    for said in converted:
        logger.info(said)
    evaluator = Evaluator(
        ImageSet("real training images", train.images, train.labels),
        ImageSet("real test images", test.images, test.labels),
        train.classes,
        config.run.seed,
        settings,
        progress=logger.info,
        forms=_forms(config, train),
    )
    evaluation = evaluator.evaluate(made.images, made.labels, illustrated)
    notes = (*converted, *_passed_unseen(_codec_of(source), config), *evaluation.notes)
    return Measured(made, test, replace(evaluation, notes=notes))


def _real_in_memory(real: InMemory | tuple[InMemory, InMemory], seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Return train and test fold.

    Raises:
        UserError: images or labels are no such.
    """
    if not isinstance(real, tuple) or is_pair_of_arrays(real):
        return split_test(labelled_images(REAL, real), "", seed)
    if len(real) != 2 or any(isinstance(fold, str | Path) for fold in real):
        raise UserError("real: give a folder, one set in memory, or two: train and test fold")
    train = labelled_images("real training images", real[0])
    return train, labelled_images("real test images", real[1], train.classes)


def _forms(config: RunConfig, train: LabelledImages) -> Forms:
    variants = exact_variants(config.training.augmentations())
    if not config.model.autoencoder:
        return Forms(variants)
    _, size, _, channels = train.images.shape
    return Forms(variants, codec_of(config, ImageSpec(channels, size, train.classes)).reconstruct)


def _codec_of(source: object) -> str:
    """Return the codec that a dataset of ours says its images came through; empty if it says nothing."""
    provenance: Mapping[str, Any] = source.provenance if isinstance(source, SyntheticDataset) else {}
    try:
        if isinstance(source, Path):
            provenance = parse_json((source / PROVENANCE).read_bytes())["provenance"]
        return str(provenance["codec"])
    except (OSError, ValueError, TypeError, LookupError):  # of somebody else, or of an earlier version
        return ""


def _passed_unseen(codec: str, config: RunConfig) -> tuple[str, ...]:
    """Warn where a dataset says that an autoencoder made its images, and none is given."""
    if config.model.autoencoder or not codec.startswith(AUTOENCODER):
        return ()
    return ("an autoencoder made these images: without it (autoencoder) fewer copies are found than there are",)
