"""Data: datasets by name, partitions into simulated silos, and what one silo sees."""

from __future__ import annotations

from fedsynth.data.celeba import CELEBA_CLASSES
from fedsynth.data.datasets import DATASETS, load_dataset
from fedsynth.data.federation import Federation, load_federation, natural_silos
from fedsynth.data.folder_layout import find_folds, visible_folders
from fedsynth.data.folder_listing import list_images
from fedsynth.data.folder_origins import add_groups, origins_in_folders
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import (
    describe_conversion,
    image_folder_spec,
    load_image_folder,
    read_image_folder,
    warn_of_damaged_images,
)
from fedsynth.data.labelled_images import LabelledImages, held_out_counts, largest_held_out_share
from fedsynth.data.origins import Origins, split_test
from fedsynth.data.partition import PARTITIONS, label_counts, manifest, partition, partition_parameters
from fedsynth.data.silo_images import Silo, few_labels_silo, folder_silo, holdout_rows, simulated_silo, split_holdout
from fedsynth.data.value_range import configured_range

__all__ = [
    "CELEBA_CLASSES",
    "DATASETS",
    "PARTITIONS",
    "Federation",
    "ImageCache",
    "LabelledImages",
    "Origins",
    "Silo",
    "add_groups",
    "configured_range",
    "describe_conversion",
    "few_labels_silo",
    "find_folds",
    "folder_silo",
    "held_out_counts",
    "holdout_rows",
    "image_folder_spec",
    "label_counts",
    "largest_held_out_share",
    "list_images",
    "load_dataset",
    "load_federation",
    "load_image_folder",
    "manifest",
    "natural_silos",
    "origins_in_folders",
    "partition",
    "partition_parameters",
    "read_image_folder",
    "simulated_silo",
    "split_holdout",
    "split_test",
    "visible_folders",
    "warn_of_damaged_images",
]
