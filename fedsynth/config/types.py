"""Words and ranges that configuration keys can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

Scalar = str | int | float | bool
Auto = Literal["auto"]
AUTO: Auto = "auto"
NONE: Literal["none"] = "none"
A_NUMBER: Literal["a number"] = "a number"
"""With this a key acts beside any number of another."""

A_FOLDER: Literal["a folder"] = "a folder"
"""With this a key acts beside any folder of another."""


@dataclass(frozen=True)
class Described:
    """What a text may be, in words; of a whole key, whose description pydantic has for its meaning."""

    description: str


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
    "dp-sum",
    "ddsa",
    "dfd",
    "pooled",
    "local",
    "centralised",
]
OWN_MODELS = ("dfd", "pooled", "local", "fedddpm", "fedddpm-plus")
"""Strategies for which every silo trains a model of its own."""

SUMMED_UPDATES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "feddiffuse")
"""Strategies that combine the weights of one network, for which their weighted mean is enough."""
AVERAGING = (*SUMMED_UPDATES, "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan", "fedddpm", "fedddpm-plus")
"""Strategies that combine the weights of one network."""

FEW_LABELS = ("ddsa",)
"""Strategies whose silos know the labels of some of their images only."""

WITH_BASE_MODEL = ("fedavg", "dfd", "pooled", "local", "centralised")
"""Strategies that fine-tune a base model."""
WITH_ADAPTERS = (
    *(*WITH_BASE_MODEL, "fedprox", "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"),
    *("fedavgm", "fedadagrad", "fedadam", "fedyogi"),
)
"""Strategies that fine-tune it by adapters."""
MEANS = ("fedavg", "fedprox")
"""Of them, those that average weights by a mean, which adapters have whatever their factors."""
REPLICATED_UPDATES = (
    *SUMMED_UPDATES,
    *("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"),
)
STREAMED = tuple(name for name in REPLICATED_UPDATES if name != "feddiffuse")
"""Of them, those whose rule takes the same layers of every silo, so that large weights can travel and be combined in
shards."""
REPLICATED = (*REPLICATED_UPDATES, "dfd")
"""Strategies of which several aggregators can each compute a round, with the same bits everywhere."""

SimulatedName = Literal[
    "digits",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "celeba",
    "camelyon17",
    "medmnist",
    "hf",
    "imagefolder",
]
SIMULATED: tuple[str, ...] = get_args(SimulatedName)
"""Datasets that simulated silos share; of ``medmnist`` and ``hf`` the first part of the name."""
DatasetName = Literal[SimulatedName, "silos"]
MemberName = Annotated[
    str,
    Field(pattern=r"^(medmnist|hf):\w[\w.-]*$", description="medmnist:set, such as medmnist:bloodmnist, hf:folder"),
]
"""One of a family of datasets."""
REAL_SILOS: DatasetName = "silos"
NATURAL: Literal["natural"] = "natural"
"""Partition of images whose silos are given."""
WITH_SILOS = ("imagefolder", "hf", "camelyon17", "cifar100")
"""Datasets that can say which silo, and which patient or slide, an image comes from."""
PartitionName = Literal["iid", "dirichlet", "power-law", "pathological", "pairs", "disjoint", "natural"]
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:name of a plug-in")]
"""``module:name`` of a plug-in: a strategy, dataset or sampler that is no part of fedsynth."""
PresetName = Literal["grid", "digits", "dp-small", "small", "mnist", "cifar10", "celeba"]
SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "ula"]
STOCHASTIC = ("ddpm", "sde-dpmsolver++")
"""Samplers whose every move carries fresh noise."""
FeatureExtractorName = Literal[
    "domain-classifier", "pixels", "efficientnet-lite0", "inception-v3-compat", "dinov2-vit-s-14"
]
ClassifierName = Literal["logistic-regression", "mlp", "cnn", "resnet"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
Licence = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$"), Described("a word such as cc-by-4.0, mit, other or unknown")
]
LedgerUrl = Annotated[
    str,
    Field(pattern=r"^(https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[\w./~%-]*)?)?$"),
    Described("http:// or https:// and HOST:PORT, such as 'http://127.0.0.1:8545', without a password, or empty"),
]
LedgerContract = Annotated[
    str,
    Field(pattern=r"^(0x[0-9a-fA-F]{40})?$"),
    Described("an address, such as '0x5FbDB2315678afecb367f032d93F642f64180aa3', or empty"),
]
RayAddress = Annotated[
    str, Field(pattern=r"^([\w.-]+:\d{1,5})?$"), Described("HOST:PORT, such as '10.0.0.5:6379', or empty")
]

LEAST_SILOS = 3
"""Participants without whom a secure sum hides nothing: of two, each knows the other's answer."""
MOST_SILOS = 1000
"""Participants of a secure sum, at most."""
