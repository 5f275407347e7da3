"""Types of configuration values, and what every section is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Scalar = str | int | float | bool
Auto = Literal["auto"]
AUTO: Auto = "auto"

StrategyName = Literal[
    "fedavg",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "fedprox",
    "feddiffuse",
    "fedddpm",
    "fedddpm-plus",
    "dfd",
    "pooled",
    "local",
    "centralised",
]
DatasetName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "celeba", "imagefolder", "silos"]
REAL_SILOS: DatasetName = "silos"
PartitionName = Literal["iid", "dirichlet", "power-law", "pathological", "pairs", "disjoint"]
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""``module:name`` of a user's own strategy, dataset or sampler."""
PresetName = Literal["digits", "small", "mnist", "cifar10", "celeba"]
SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "ula"]
FeatureExtractorName = Literal["domain-classifier", "pixels", "inception-v3-compat", "dinov2-vit-s-14"]
ClassifierName = Literal["logistic-regression", "mlp", "cnn", "resnet"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen and strict; fields are kebab-case keys outside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )
