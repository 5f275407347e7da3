"""The twenty superclasses of CIFAR-100 (Krizhevsky 2009), each of five classes, as natural silos."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.labelled_images import Names
from fedsynth.data.origins import Origins
from fedsynth.errors import UserError

COARSE_LABEL = "coarse_label"
_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASSES = {name: superclass for superclass, names in _SUPERCLASSES.items() for name in names.split()}
"""Class -> superclass; the files say the same image by image."""


def superclass_silos(labels: NDArray[np.int64], classes: tuple[str, ...], origins: Origins) -> Names | None:
    """Return the superclass of every image, (N,), where silos are wanted.

    Raises:
        UserError: another column, or groups, are asked for.
    """
    if origins.silo_column not in ("", COARSE_LABEL):
        raise UserError(f"silo-column = '{origins.silo_column}': of cifar100 it is '{COARSE_LABEL}', or left out")
    if origins.group_column:
        raise UserError(f"group-column = '{origins.group_column}': cifar100 has no groups; leave it out")
    return np.array([SUPERCLASSES[name] for name in classes])[labels] if origins.natural else None
