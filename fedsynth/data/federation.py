"""A named dataset shared out to simulated silos, as a run's configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import AUTO, NATURAL, RunConfig
from fedsynth.data.datasets import load_dataset
from fedsynth.data.duplicate_images import describe_between_silos
from fedsynth.data.folder_layout import find_folds
from fedsynth.data.folder_origins import silos_in_folders
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import describe_conversion
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
    """

    train: LabelledImages
    test: LabelledImages
    parts: list[NDArray[np.int64]]
    silo_names: tuple[str, ...] = ()

    @property
    def spec(self) -> ImageSpec:
        """Format and classes of the images."""
        return ImageSpec(self.train.images.shape[3], self.train.images.shape[1], self.train.classes)

    def silo(self, partition_id: int, config: RunConfig) -> Silo:
        """Return what silo ``partition_id`` sees."""
        indices = self.parts[partition_id]
        fraction, seed = config.data.holdout_fraction, config.run.seed
        return simulated_silo(self.train, indices, partition_id, fraction, seed, each_alone=config.private)

    def union(self, config: RunConfig) -> LabelledImages:
        """Return the images that all silos train on, one silo after the other."""
        fraction, seed = config.data.holdout_fraction, config.run.seed
        rows = [holdout_rows(self.train, indices, fraction, seed, config.private)[0] for indices in self.parts]
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
        return f"{scheme}, {len(sizes)} silos of {some} images{kept}"

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
            _parameters(config),
            self.silo_names,
        )


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
    return Federation(train, test, parts, _natural_names(config, train))


def natural_silos(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the silos that share the configured dataset, sorted; empty unless its partition is natural.

    Raises:
        UserError: no such data, or unusable images.
    """
    data = config.data
    if data.partition == NATURAL and data.dataset == "imagefolder" and data.data_root:
        return tuple(sorted(silos_in_folders(Path(data.data_root).expanduser(), configured_origins(data))))
    return _natural_names(config, _folds(config)[0]) if data.partition == NATURAL else ()


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
