"""A named dataset shared out to simulated silos, as a run's configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import AUTO, RunConfig
from fedsynth.data.datasets import load_dataset
from fedsynth.data.duplicate_images import describe_between_silos
from fedsynth.data.labelled_images import LabelledImages
from fedsynth.data.partition import manifest, partition, partition_parameters
from fedsynth.data.silo_images import Silo, simulated_silo
from fedsynth.data.value_range import configured_range
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, eq=False)
class Federation:
    """All the images of a simulated run.

    Attributes:
        train: train fold, which the silos share.
        test: test fold, which stays with the server.
        parts: indices into ``train``, one array per silo.
    """

    train: LabelledImages
    test: LabelledImages
    parts: list[NDArray[np.int64]]

    @property
    def spec(self) -> ImageSpec:
        """Format and classes of the images."""
        return ImageSpec(self.train.images.shape[3], self.train.images.shape[1], self.train.classes)

    def silo(self, partition_id: int, config: RunConfig) -> Silo:
        """Return what silo ``partition_id`` sees."""
        indices = self.parts[partition_id]
        return simulated_silo(self.train, indices, partition_id, config.data.holdout_fraction, config.run.seed)

    def describe_duplicates(self) -> str:
        """Say which pictures are test images too, are held by two silos, or stand under two classes; empty if none."""
        return describe_between_silos(self.train, self.test, self.parts)

    def manifest(self, config: RunConfig) -> dict[str, Any]:
        """Return indices, label counts and a hash of the partition, ready for JSON."""
        scheme = config.data.partition
        return manifest(self.parts, self.train.labels, self.train.classes, scheme, config.run.seed, _parameters(config))


def load_federation(config: RunConfig) -> Federation:
    """Load the configured dataset and share its train fold out.

    Raises:
        UserError: no such data, unusable images, or more silos than the data can serve.
    """
    data = config.data
    train, test = load_dataset(
        data.dataset,
        data.data_root or None,
        image_size=None if data.image_size == AUTO else data.image_size,
        download=data.download,
        skip_bad_images=data.skip_bad_images,
        value_range=configured_range(data),
        first_page_only=data.first_page_only,
        seed=config.run.seed,
        cache=Path(config.run.state_dir) / "images",
    )
    parts = partition(train.labels, data.partition, config.run.num_clients, config.run.seed, **_parameters(config))
    return Federation(train, test, parts)


def _parameters(config: RunConfig) -> dict[str, Any]:
    known = config.data.model_dump()
    names = (*partition_parameters(config.data.partition), "samples_per_client")
    return {name: known[name] for name in names}
