"""Keys of the images, and of how simulated silos share them."""

from __future__ import annotations

import math
import unicodedata
from typing import Literal, get_args

from pydantic import model_validator

from fedsynth.config.keys import Section, key, one_of_words
from fedsynth.config.run import SILOS_DIFFER
from fedsynth.config.types import (
    AUTO,
    FEW_LABELS,
    NATURAL,
    NONE,
    REAL_SILOS,
    SIMULATED,
    WITH_SILOS,
    Auto,
    BelowOne,
    Count,
    DatasetName,
    MemberName,
    PartitionName,
    PluginName,
    Positive,
    PositiveFloat,
    Share,
)
from fedsynth.plugins import family, is_plugin

_OTHER_IMAGES = "numbers from different images cannot be compared"
_FOLDERS = ("imagefolder", REAL_SILOS)
_FROM_FILES = ("imagefolder", "hf", "celeba", "camelyon17", "cifar10", REAL_SILOS)


class Data(Section):
    """The images and how simulated silos share them."""

    dataset: DatasetName | MemberName | PluginName = key(
        "digits", "images of a simulated run; silos: real silos' own", incomparable=_OTHER_IMAGES
    )
    data_root: str = key(
        "",
        "folder that holds the dataset",
        path=True,
        may_change=True,
        # The first is what a refusal suggests: a folder is most often somebody's own.
        acts_with={"dataset": ("imagefolder", *(name for name in SIMULATED if name not in ("digits", "imagefolder")))},
        incomparable=_OTHER_IMAGES,
    )
    download: bool = key(
        False,
        "let torchvision fetch a dataset that data-root lacks",
        affects="execution",
        acts_with={"dataset": ("mnist", "fashion-mnist", "cifar10", "cifar100", "celeba")},
    )
    image_size: Positive | Auto = key(
        AUTO,
        "side in pixels; auto: the dataset's own",
        commands=("evaluate", "train-local"),
        incomparable="numbers from images of different sizes cannot be compared",
    )
    class_names: str = key(
        "",
        "classes of real silos, such as 'cat,dog'; empty: all that they hold",
        acts_with={"dataset": (REAL_SILOS,)},
    )
    skip_bad_images: bool = key(
        False,
        "leave out unreadable files instead of refusing the folder",
        commands=("evaluate", "train-local"),
        acts_with={"dataset": _FROM_FILES},
    )
    value_range: Auto | Literal["full"] | str = key(
        AUTO,
        "values that become black and white in files of more than 8 bits, such as '0,4095'; auto: the bits in use",
        commands=("evaluate", "train-local"),
        acts_with={"dataset": _FOLDERS},
        incomparable=_OTHER_IMAGES,
    )
    first_page_only: bool = key(
        False,
        "take the first page or frame where a file has several, instead of refusing it",
        commands=("evaluate", "train-local"),
        acts_with={"dataset": _FOLDERS},
    )
    partition: PartitionName = key(
        "dirichlet",
        "how labels spread over simulated silos; natural: the silos are given",
        acts_with={"dataset": SIMULATED},
        incomparable=SILOS_DIFFER,
    )
    silo_column: str = key(
        "",
        "column of the metadata that names an image's silo; empty: <silo>/<class>/image or the dataset itself does",
        acts_with={"dataset": WITH_SILOS, "partition": (NATURAL,)},
        incomparable=SILOS_DIFFER,
    )
    test_silo: str = key(
        "",
        "silo that is left out of training, as the test images; empty: 20 % of every silo",
        acts_with={"dataset": WITH_SILOS, "partition": (NATURAL,)},
        incomparable=_OTHER_IMAGES,
    )
    group_column: str = key(
        "",
        "column of the metadata, such as patient: no value of it at two silos, or in training and test",
        acts_with={"dataset": WITH_SILOS},
        incomparable=SILOS_DIFFER,
    )
    alpha: PositiveFloat = key(
        0.1,
        "Dirichlet concentration; smaller is more uneven",
        acts_with={"dataset": SIMULATED, "partition": ("dirichlet",)},
        incomparable=SILOS_DIFFER,
    )
    classes_per_client: Positive = key(
        3,
        "distinct classes per silo",
        acts_with={"dataset": SIMULATED, "partition": ("pathological",)},
        incomparable=SILOS_DIFFER,
    )
    samples_per_client: Count = key(
        0, "mean images per silo; 0: all", acts_with={"dataset": SIMULATED}, incomparable=SILOS_DIFFER
    )
    labelled_fraction: Share = key(
        0.1,
        "share of a silo's images whose labels it knows, of every class one at least; the others are unlabelled",
        acts_with={"strategy": FEW_LABELS, "dataset": SIMULATED},
        incomparable=SILOS_DIFFER,
    )
    labelled_alpha: Literal["none"] | PositiveFloat = key(
        NONE,
        "Dirichlet concentration of the labelled images, which are then spread over the silos by a draw of their own;"
        " none: they lie where the partition has them",
        acts_with={
            "strategy": FEW_LABELS,
            "dataset": SIMULATED,
            "partition": tuple(name for name in get_args(PartitionName) if name != NATURAL),
        },
        incomparable=SILOS_DIFFER,
    )
    holdout_fraction: BelowOne = key(0.1, "share of a silo's images never trained on", commands=("train-local",))

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Data:
        names = self.classes()
        if names is not None and (not all(names) or len(set(names)) < len(names)):
            raise ValueError(f"class-names = '{self.class_names}': must be distinct names, such as 'cat,dog'")
        return self

    @model_validator(mode="after")
    def _natural_silos_are_known(self) -> Data:
        if self.partition == NATURAL and family(self.dataset) not in WITH_SILOS and not is_plugin(self.dataset):
            raise ValueError(
                f"partition = '{NATURAL}': dataset = '{self.dataset}' does not say which silo an image comes from; set"
                f" dataset = {one_of_words(map(repr, WITH_SILOS))}, or another partition"
            )
        return self

    @model_validator(mode="after")
    def _groups_stay_together(self) -> Data:
        if self.labelled_alpha != NONE and self.group_column:
            raise ValueError(
                f"labelled-alpha = {self.labelled_alpha} with group-column = '{self.group_column}': labelled images"
                " would be drawn away from their groups; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _value_range_is_one(self) -> Data:
        if self.value_range not in (AUTO, "full"):
            low, high = self.value_bounds() or (math.nan, math.nan)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"value-range = '{self.value_range}': must be 'auto', 'full' or two numbers, the smaller first,"
                    " such as '0,4095'"
                )
        return self

    def value_bounds(self) -> tuple[float, float] | None:
        """The two numbers of ``value-range``, or None if it is none."""
        try:
            low, high = map(float, self.value_range.split(","))
        except ValueError:
            return None
        return low, high

    def classes(self) -> tuple[str, ...] | None:
        """``class-names`` one by one, in Unicode's composed form as silos send them; None for all that they hold."""
        names = unicodedata.normalize("NFC", self.class_names).split(",")
        return tuple(name.strip() for name in names) if self.class_names else None
