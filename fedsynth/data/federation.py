"""A named dataset shared out to simulated silos, as a run's configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import AUTO, NATURAL, RunConfig
from fedsynth.config.types import FEW_LABELS, NONE
from fedsynth.data.datasets import load_dataset
from fedsynth.data.duplicate_images import describe_between_silos
from fedsynth.data.folder_layout import find_folds
from fedsynth.data.folder_origins import silos_in_folders
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import describe_conversion
from fedsynth.data.label_split import labelled_rows, spread_labelled
from fedsynth.data.labelled_images import Folds, LabelledImages
from fedsynth.data.origins import configured_origins
from fedsynth.data.partition import manifest, partition, partition_parameters
from fedsynth.data.silo_images import Silo, holdout_rows, simulated_silo
from fedsynth.data.value_range import configured_range
from fedsynth.spec import ImageSpec
from fedsynth.text import visible

_OF_28_PIXELS = ("mnist", "fashion-mnist")
_HOW = "cropped to their centre square where they are none, then resized"
_MOST_LOOKED_AT = 20_000
"""Image files whose headers are read once more to say what was done to them: two seconds."""


@dataclass(frozen=True, eq=False)
class Federation:
    """All the images of a simulated run.

    Attributes:
        train: train fold, which the silos share.
        test: test fold, which stays with the server.
        parts: indices into ``train``, one array per silo.
        silo_names: names of natural silos, in the order of ``parts``; empty where nobody gave any.
        labelled: indices of the images whose labels a silo knows, in the order of ``parts``; None: all.
    """

    train: LabelledImages
    test: LabelledImages
    parts: list[NDArray[np.int64]]
    silo_names: tuple[str, ...] = ()
    labelled: list[NDArray[np.int64]] | None = None

    @property
    def spec(self) -> ImageSpec:
        """Format and classes of the images."""
        return ImageSpec(self.train.images.shape[3], self.train.images.shape[1], self.train.classes)

    def silo(self, partition_id: int, config: RunConfig) -> Silo:
        """Return what silo ``partition_id`` sees."""
        indices = self.parts[partition_id]
        fraction, seed = config.data.holdout_fraction, config.run.seed
        if self.labelled is None:
            return simulated_silo(self.train, indices, partition_id, fraction, seed, each_alone=config.private)
        labelled, held = self.labelled[partition_id], self._held_out(partition_id, config)
        unlabelled = np.setdiff1d(indices, np.union1d(labelled, held))
        parts = (self.train.subset(rows) for rows in (labelled, held, unlabelled))
        return Silo(f"silo-{partition_id}", *parts)

    def _held_out(self, silo: int, config: RunConfig) -> NDArray[np.int64]:
        """Return what a silo with few labels holds out: none of them."""
        held = holdout_rows(self.train, self.parts[silo], config.data.holdout_fraction, config.run.seed)[1]
        return np.setdiff1d(held, self.labelled[silo]) if self.labelled is not None else held

    def union(self, config: RunConfig) -> LabelledImages:
        """Return the images that all silos train on, one silo after the other; where labels are few, may train on."""
        fraction, seed = config.data.holdout_fraction, config.run.seed
        if self.labelled is None:
            rows = [holdout_rows(self.train, indices, fraction, seed, config.private)[0] for indices in self.parts]
        else:
            rows = [np.setdiff1d(part, self._held_out(k, config)) for k, part in enumerate(self.parts)]
        return self.train.subset(np.concatenate(rows))

    def describe_duplicates(self) -> str:
        """Say which pictures are test images too, are held by two silos, or stand under two classes; empty if none."""
        return describe_between_silos(self.train, self.test, self.parts)

    def describe_images(self, config: RunConfig) -> str:
        """Say how many images there are, in which format, and what was done to them to have it."""
        _, size, _, channels = self.train.images.shape
        said = (
            f"{config.data.dataset}: {len(self.train):,} images for the silos and {len(self.test):,} for testing,"
            f" {len(self.train.classes)} classes, {size} x {size} pixels, {'grey' if channels == 1 else 'RGB'}"
        )
        return visible("; ".join(filter(None, [said, _conversion(config, self.train)])))

    def describe_split(self, config: RunConfig) -> str:
        """Say how the silos share the images."""
        given = ", ".join(f"{name.replace('_', '-')} = {value}" for name, value in _parameters(config).items() if value)
        sizes, held_out = [len(part) for part in self.parts], config.data.holdout_fraction
        some = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
        kept = f"; {100 * held_out:g} % of each silo's are held out from its training" if held_out else ""
        scheme = f"{config.data.partition} ({given})" if given else config.data.partition
        return f"{scheme}, {len(sizes)} silos of {some} images{kept}{self._describe_labels(config)}"

    def _describe_labels(self, config: RunConfig) -> str:
        if self.labelled is None:
            return ""
        alpha = config.data.labelled_alpha
        drawn = "" if alpha == NONE else f", spread by a draw of their own (labelled-alpha = {alpha})"
        return f"; the labels of {sum(map(len, self.labelled)):,} images are known{drawn}"

    def describe_silos(self) -> str:
        """Say which natural silo each is: ``silo-0 is bccd, silo-1 is tecom``; empty where nobody gave names."""
        return visible(", ".join(f"silo-{k} is {name}" for k, name in enumerate(self.silo_names)))

    def manifest(self, config: RunConfig) -> dict[str, Any]:
        """Return indices, label counts, names of natural silos and a hash of the partition, ready for JSON."""
        return manifest(
            self.parts,
            self.train.labels,
            self.train.classes,
            config.data.partition,
            config.run.seed,
            {**_parameters(config), **self._label_parameters(config)},
            self.silo_names,
            self.labelled,
        )

    def _label_parameters(self, config: RunConfig) -> dict[str, Any]:
        if self.labelled is None:
            return {}
        return config.data.model_dump(include={"labelled_fraction", "labelled_alpha"})


def load_federation(config: RunConfig) -> Federation:
    """Load the configured dataset and share its train fold out.

    Raises:
        UserError: no such data, unusable images, more silos than the data can serve, or of natural silos another number
            than there are.
    """
    train, test = _folds(config)
    parts = partition(
        train.labels,
        config.data.partition,
        config.run.num_clients,
        config.run.seed,
        silos=train.silos,
        groups=train.groups,
        **_parameters(config),
    )
    parts, labelled = _labelled(config, train, parts) if config.run.strategy in FEW_LABELS else (parts, None)
    return Federation(train, test, parts, _natural_names(config, train), labelled)


def natural_silos(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the silos that share the configured dataset, sorted; empty unless its partition is natural.

    Raises:
        UserError: no such data, or unusable images.
    """
    data = config.data
    if data.partition == NATURAL and data.dataset == "imagefolder" and data.data_root:
        return tuple(sorted(silos_in_folders(Path(data.data_root).expanduser(), configured_origins(data))))
    return _natural_names(config, _folds(config)[0]) if data.partition == NATURAL else ()


def _labelled(
    config: RunConfig, train: LabelledImages, parts: list[NDArray[np.int64]]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return the images of every silo, and those of them whose labels it knows."""
    data, seed = config.data, config.run.seed
    if data.labelled_alpha != NONE:
        return spread_labelled(train.labels, parts, data.labelled_fraction, data.labelled_alpha, seed)
    kept = [holdout_rows(train, part, data.holdout_fraction, seed)[0] for part in parts]
    return parts, [labelled_rows(train.labels, rows, data.labelled_fraction, seed, k) for k, rows in enumerate(kept)]


def _natural_names(config: RunConfig, train: LabelledImages) -> tuple[str, ...]:
    if config.data.partition != NATURAL or train.silos is None:
        return ()
    return tuple(np.unique(train.silos).tolist())


def _folds(config: RunConfig) -> Folds:
    data = config.data
    return load_dataset(
        data.dataset,
        data.data_root or None,
        image_size=None if data.image_size == AUTO else data.image_size,
        download=data.download,
        skip_bad_images=data.skip_bad_images,
        value_range=configured_range(data),
        first_page_only=data.first_page_only,
        seed=config.run.seed,
        origins=configured_origins(data),
        cache=ImageCache(Path(config.run.state_dir) / "images"),
    )


def _conversion(config: RunConfig, train: LabelledImages) -> str:
    """Say what was done to images that had another format; empty if nothing, or if that is not known."""
    data, shape = config.data, train.images.shape[1:]
    if data.dataset in _OF_28_PIXELS:
        border = "a border of 2 pixels around 28 x 28" if shape[0] == 32 else "resized from 28 x 28"
        return "" if shape[0] == 28 else border
    if data.dataset != "imagefolder" or len(train) > _MOST_LOOKED_AT:
        return "" if data.dataset == "digits" and shape[0] == 8 else f"others were {_HOW}"
    root = Path(data.data_root).expanduser()
    folds = find_folds(root)
    folders = {"training": folds.train, "test": folds.test} if folds else {"": root}
    changes = {name: describe_conversion(folder, shape, train.classes) for name, folder in folders.items()}
    said = [f"{name} images: {how}".removeprefix(" images: ") for name, how in changes.items() if how]
    return f"{'; '.join(said)} ({_HOW})" if said else "as they are stored"


def _parameters(config: RunConfig) -> dict[str, Any]:
    known = config.data.model_dump()
    names = (*partition_parameters(config.data.partition), "samples_per_client")
    return {name: known[name] for name in names}
