"""Folders of images to be measured, and of real ones to measure against."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedsynth.config import AUTO, RunConfig
from fedsynth.data import (
    LabelledImages,
    configured_range,
    describe_conversion,
    find_folds,
    load_dataset,
    origins_in_folders,
    read_image_folder,
)
from fedsynth.errors import UserError
from fedsynth.output import RunFolder, folder_names
from fedsynth.output.dataset import PROVENANCE


def dataset_root(path: Path) -> Path:
    """Return the folder that holds the class folders: ``path``, or inside it if it is a run folder."""
    run = RunFolder(path)
    root = run.synthetic if run.synthetic.is_dir() else path
    check_folder("dataset", root)
    if root == path and run.config.is_file():
        raise UserError(
            f"the run folder '{path}' has no synthetic/: its run did not finish; resume it, or give another"
        )
    sets = sorted(child for child in root.iterdir() if (child / PROVENANCE).is_file())
    if sets:
        raise UserError(f"'{root}' holds {len(sets)} datasets: measure one at a time, such as {sets[0]}")
    return root


def check_folder(name: str, path: Path) -> None:
    """Raise UserError unless ``path`` is a folder; ``name`` is what it was given as."""
    if not path.is_dir():
        found = " (it is a file)" if path.exists() else ""
        raise UserError(f"{name}: there is no folder '{path}'{found}; give one with one folder of images per class")


def read_real(path: Path, classes: Collection[str], config: RunConfig) -> tuple[LabelledImages, LabelledImages]:
    """Return train and test fold of a folder of real images.

    Args:
        path: class folders, or train/ and test/; all these in silos' folders, too.
        classes: names of the synthetic set's class folders: they tell whether silos' folders stand above.
        config: how images are read, and the seed of the split.

    Raises:
        UserError: they cannot be read, or are too few.
    """
    asked = config.data
    size = None if asked.image_size == AUTO else asked.image_size
    folds = load_dataset(
        "imagefolder",
        path,
        image_size=size,
        skip_bad_images=asked.skip_bad_images,
        value_range=configured_range(asked),
        first_page_only=asked.first_page_only,
        seed=config.run.seed,
        origins=origins_in_folders(path, classes),
    )
    train, test = map(len, folds)
    if min(train, test) < 2:
        raise UserError(
            f"--real '{path}' gives {train} training and {test} test images, at least 2 of each are needed: add images;"
            " without folders train/ and test/ one image in five of each class is for testing"
        )
    return folds


def read_synthetic(root: Path, real: LabelledImages, config: RunConfig) -> LabelledImages:
    """Return the images of a folder in the format of the real ones, under their class names.

    Raises:
        UserError: they cannot be read, or are too few.
    """
    _, size, _, channels = real.images.shape
    # Our datasets name their folders so that every reader understands them; real folders may be named otherwise.
    folders = folder_names(real.classes) if (root / PROVENANCE).is_file() else real.classes
    data = read_image_folder(
        root,
        image_size=size,
        channels=channels,
        skip_bad_images=config.data.skip_bad_images,
        classes=folders,
        value_range=configured_range(config.data),
        first_page_only=config.data.first_page_only,
    )
    if len(data) < 2:
        raise UserError(f"dataset '{root}': 1 image, at least 2 are needed; give more images")
    return LabelledImages(data.images, data.labels, real.classes)


def conversions(root: Path, real: Path, train: LabelledImages) -> tuple[str, ...]:
    """Return a sentence on every folder whose images were converted to be read as ``train`` has them."""
    image_shape, known = train.images.shape[1:], (*train.classes, *folder_names(train.classes))
    folds = find_folds(real)
    folders = {"real train": folds.train, "real test": folds.test} if folds else {"real": real}
    said = {name: describe_conversion(folder, image_shape, known) for name, folder in folders.items()}
    notes = [f"{name} images were converted: {how}; image-size sets the side" for name, how in said.items() if how]
    if how := describe_conversion(root, image_shape, known):
        notes.append(f"synthetic images were converted to the format of the real ones: {how}")
    return tuple(notes)
