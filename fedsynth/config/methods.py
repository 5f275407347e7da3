"""The settings of every strategy: frozen, with real defaults; constructors and the flat configuration read them.

In the flat configuration every key here is ``"auto"`` unless somebody chose a value; ``"auto"`` means the default of
the chosen strategy's class. Words are Flower's where Flower has the strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from fedsynth.config.keys import Section, facts_of, kebab, key, one_of_words, parse, why_idle
from fedsynth.config.types import (
    AUTO,
    STOCHASTIC,
    BelowOne,
    Count,
    NonNegative,
    OpenUnit,
    PluginName,
    Positive,
    PositiveFloat,
    SamplerName,
    Scalar,
    Share,
)

ONE_STEP = ("ddpm", "ddim")
"""Samplers whose move depends on the samples and the answers at one timestep alone."""


class StrategySettings(Section):
    """What every strategy takes."""

    composes: ClassVar[bool] = False
    """Whether samples move on composed noise predictions, which Langevin moves (``ula``) are for."""
    labels_everywhere: ClassVar[bool] = True
    """Whether every silo needs labelled images."""

    sampler: SamplerName | PluginName = key(
        "sde-dpmsolver++", "how samples move between timesteps; ula: with dfd only", commands=("draw",)
    )

    @classmethod
    def defaults(cls, flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return what ``"auto"`` means, by key, beside the other values of a flat configuration."""
        return {kebab(name): info.default for name, info in cls.model_fields.items()}

    @classmethod
    def complete(cls, flat: Mapping[str, Scalar]) -> Self:
        """Build the settings from a flat configuration.

        Raises:
            UserError: values that do not go together.
        """
        defaults = cls.defaults(flat)
        return parse(cls, {name: default if flat[name] == AUTO else flat[name] for name, default in defaults.items()})

    @model_validator(mode="after")
    def _langevin_moves_need_composition(self) -> Self:
        if self.sampler == "ula" and not self.composes:
            raise ValueError("sampler = 'ula': acts with strategy = 'dfd' only; leave it out or set strategy = 'dfd'")
        return self


def inherited(settings: type[Section], name: str, default: Any) -> Any:
    """Declare a field of a base class again, with another default."""
    info = copy.copy(settings.model_fields[name])
    info.default = default
    return info


CommonModel = Literal["fedavg", "fedmedian", "fedtrimmedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedprox"]
COMMON_MODEL = get_args(CommonModel)
"""Values of ``diffusion-strategy`` with which all silos train one diffusion model."""


class RoundsSettings(StrategySettings):
    """One global model, trained in rounds."""

    num_rounds: Positive = key(
        20,
        "rounds that train-steps are spread over; with diffusion-strategy = dfd timesteps visited, one round each",
        may_change="without dp-epsilon",
        acts_with={"diffusion-strategy": (*COMMON_MODEL, "dfd")},
    )
    sample_from: Literal["raw", "ema"] = key(
        "raw",
        "weights to sample from: the last, or their moving average",
        acts_with={"diffusion-strategy": COMMON_MODEL},
    )


class CentralisedSettings(RoundsSettings):
    """Training on the union of the images."""

    sample_from: Literal["raw", "ema"] = inherited(RoundsSettings, "sample_from", "ema")


class AveragingSettings(RoundsSettings):
    """Parameter averaging."""

    server_ema_decay: BelowOne = key(
        0.5, "weight of the past in the moving average over rounds", acts_with={"sample-from": ("ema",)}
    )
    fraction_train: Share = key(1.0, "share of the silos that train in a round, rounded down")
    min_train_nodes: Positive = key(2, "least number of silos that train in a round")
    lora_aggregation: Literal["svd", "freeze-a", "stack"] = key(
        "svd",
        "how adapters are averaged; svd: the nearest to their mean of rank lora-rank; freeze-a: exactly, only B is"
        " trained; stack: exactly, ranks add up",
        acts_with={"train": ("lora",)},
    )


class ValuewiseSettings(AveragingSettings):
    """Rules that are no plain mean: of adapters they take values only where all silos have one A."""

    lora_aggregation: Literal["svd", "freeze-a", "stack"] = inherited(AveragingSettings, "lora_aggregation", "freeze-a")


class TrimmedSettings(ValuewiseSettings):
    """Trimmed mean."""

    beta: Annotated[float, Field(ge=0, lt=0.5)] = key(0.2, "β, share of the values cut at each end")


class KrumSettings(ValuewiseSettings):
    """Krum and its family."""

    num_malicious_nodes: Count = key(0, "f, hostile silos to survive")


class MultiKrumSettings(KrumSettings):
    """MultiKrum."""

    num_nodes_to_select: Count = key(0, "m, models averaged; 0: all but num-malicious-nodes")


class MomentumSettings(ValuewiseSettings):
    """Server momentum."""

    server_learning_rate: PositiveFloat = key(1.0, "η, step along the mean update")
    server_momentum: BelowOne = key(0.9, "β, weight of past updates")

    @model_validator(mode="after")
    def _is_not_fedavg(self) -> Self:
        if self.server_momentum == 0 and self.server_learning_rate == 1:
            raise ValueError(
                "server-momentum = 0 with server-learning-rate = 1 is FedAvg: use strategy = 'fedavg', or change one"
            )
        return self


class AdaptiveSettings(ValuewiseSettings):
    """Adaptive optimisers on the server."""

    # Ten times below Flower's, which overshoots on small updates; FedYogi's in the source.
    eta: PositiveFloat = key(1e-2, "η, step of the server")
    tau: PositiveFloat = key(1e-3, "τ, adaptivity: larger is nearer to plain averaging")


class AdamSettings(AdaptiveSettings):
    """Adaptive optimisers with two moments."""

    beta_1: BelowOne = key(0.9, "β₁, decay of the first moment")
    beta_2: BelowOne = key(0.99, "β₂, decay of the second moment")


class FedProxSettings(AveragingSettings):
    """Proximal local training."""

    # Our choice: the source tunes it from {0.001, 0.01, 0.1, 1}.
    proximal_mu: NonNegative = key(0.01, "μ, pull of local training towards the global weights")


class FedDiffuseSettings(AveragingSettings):
    """Averaging of parts of the U-Net."""

    feddiffuse_method: Literal["full", "usplit", "ulatdec", "udec"] = key("usplit", "which parts of the U-Net travel")


class FedDDPMSettings(AveragingSettings):
    """Averaging with correction on the server."""

    # The paper's sizes, steps and rates could not be found: the defaults are our choice.
    aux_samples: Positive = key(1000, "images in the auxiliary set")
    server_steps: Positive = key(50, "optimiser steps of one correction")
    correction_learning_rate: PositiveFloat = key(1e-4, "Adam's in a correction")


class FedDDPMPlusSettings(FedDDPMSettings):
    """Correction when learning is slow."""

    slow_window: Positive = key(5, "rounds over which progress is judged")
    slow_tolerance: BelowOne = key(0.01, "a relative drop of the loss below it is slow")
    correct_once: bool = key(True, "correct once per run, not whenever slow")


COMPARED = ("labelled", "pseudo", "fixmatch", "all")
_BY_PRECISION = {"pseudo-selection": ("precision",)}


class DDSASettings(AveragingSettings):
    """Few labels: pseudo-labels, federated diffusion, and synthesis of what a silo lacks."""

    labels_everywhere: ClassVar[bool] = False

    diffusion_strategy: Literal[CommonModel, "dfd", "pooled"] = key(
        "fedavg",
        "what draws images, with its defaults: a model that all silos train together, by a rule of averaging; dfd: the"
        " silos' own models, together; pooled: each image one of them (both our choice)",
    )

    # The paper's network, steps and rates could not be found: the defaults are our choice.
    classifier_rounds: Positive = key(10, "rounds in which a classifier is trained, whatever it learns from")
    classifier_steps: Positive = key(400, "optimiser steps of a silo on a classifier, over those rounds")
    classifier_learning_rate: PositiveFloat = key(0.05, "of SGD with momentum on a classifier; falls to 0 as a cosine")
    pseudo_selection: Literal["precision", "confidence", "all", "none"] = key(
        "precision",
        "predictions on unlabelled images that become pseudo-labels: those that all silos' confusion matrices together"
        " say are precise, those of a confidence of .95, all, or none",
    )
    pseudo_precision: OpenUnit = key(0.8, "precision that a class's pseudo-labels must reach", acts_with=_BY_PRECISION)
    pseudo_bins: Annotated[int, Field(ge=1, le=1000)] = key(
        20, "bins of confidence of a confusion matrix", acts_with=_BY_PRECISION
    )
    pseudo_holdout: OpenUnit = key(
        0.2,
        "share of a silo's labelled images on which its confusion matrix is counted; the first classifier never sees"
        " them",
        acts_with=_BY_PRECISION,
    )
    confusion_noise: NonNegative = key(
        0.0,
        "scale of the two-sided geometric noise in every cell of a silo's confusion matrix; 0: none",
        acts_with=_BY_PRECISION,
    )
    synthetic_quota: Literal["missing", "gap"] = key(
        "missing",
        "images that a silo synthesises: of the classes that it has no labels of, or what brings each class up to its"
        " share of all silos' labels",
    )
    synthetic_multiplier: PositiveFloat = key(1.0, "μ, by which the numbers of synthesised images are multiplied")
    compare_classifiers: str = key(
        "",
        "further classifiers to train and measure with as many rounds and steps: of 'labelled' (no more than the"
        " labels), 'pseudo' (labels and pseudo-labels), 'fixmatch' and 'all' (every true label), such as"
        " 'labelled,fixmatch'; empty: none",
    )

    @model_validator(mode="after")
    def _compared_are_known(self) -> Self:
        names = self.compared()
        if not set(names) <= set(COMPARED) or len(set(names)) < len(names):
            raise ValueError(
                f"compare-classifiers = '{self.compare_classifiers}': must name each of {', '.join(COMPARED)} at most"
                " once"
            )
        return self

    @model_validator(mode="after")
    def _a_round_has_a_step(self) -> Self:
        if self.classifier_rounds > self.classifier_steps:
            raise ValueError(
                f"classifier-rounds = {self.classifier_rounds}: must be <= classifier-steps = {self.classifier_steps}"
            )
        return self

    def compared(self) -> tuple[str, ...]:
        """``compare-classifiers`` one by one."""
        return tuple(name.strip() for name in self.compare_classifiers.split(",")) if self.compare_classifiers else ()

    @property
    def own_models(self) -> bool:
        """Whether silos train diffusion models of their own, whose weights they keep."""
        return self.diffusion_strategy not in COMMON_MODEL

    def cooperation(self) -> DfDSettings:
        """Return the settings of cooperative inference with ``diffusion-strategy = "dfd"``: dfd's, by the sampler."""
        weights: Literal["posterior", "constant"] = "posterior" if self.sampler in STOCHASTIC else "constant"
        return DfDSettings(dfd_rounds=self.num_rounds, sampler=self.sampler, weights=weights)

    @property
    def asks(self) -> tuple[Literal["confusion", "select", "synthesise"], ...]:
        """Kinds of message that a run sends besides those of averaging."""
        if self.pseudo_selection == "none":
            return ("synthesise",)
        return (
            ("confusion", "select", "synthesise") if self.pseudo_selection == "precision" else ("select", "synthesise")
        )

    @property
    def classifiers(self) -> tuple[str, ...]:
        """What classifiers are trained on, one after the other."""
        first = () if self.pseudo_selection == "none" else ("first",)
        return (*first, "synthetic", *self.compared())


class DPSumSettings(StrategySettings):
    """One private model of all silos, trained by secure sums of their gradients."""

    dp_colluders: Count = key(
        1, "silos that may help the server to look behind a sum: dp-epsilon holds towards all of them together"
    )


class OwnModelsSettings(StrategySettings):
    """Sampling from the silos' own models."""

    prior: Literal["uniform", "size", "class"] = key("class", "prior weight of a silo")


class DfDSettings(OwnModelsSettings):
    """Cooperative inference."""

    composes: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Scalar]]] = {
        "default": {},
        "paper": {
            "dfd-rounds": 1000,
            "sampler": "ula",
            "prior": "size",
            "weights": "energy",
            "energy-scale": 2.0,
            "score-scale": 2.0,
        },
    }

    dfd_rounds: Positive = key(10, "timesteps visited, one round each")
    weights: Literal["constant", "energy", "posterior"] = key(
        "posterior", "what moves the prior: nothing, the energy (paper) or the path; auto: what suits the sampler"
    )
    temperature: Annotated[float, Field(ge=1)] = key(
        1.0, "1: posterior weights; larger: nearer to constant ones", acts_with={"weights": ("posterior",)}
    )
    energy_scale: NonNegative = key(1.0, "λ in the energy weights", acts_with={"weights": ("energy",)})
    score_scale: PositiveFloat = key(1.0, "λ in the score, a temperature", acts_with={"sampler": ("ula",)})
    step_scale: Annotated[float, Field(gt=0, le=0.5)] = key(
        0.2, "c of the Langevin step size", acts_with={"sampler": ("ula",)}
    )
    max_silo_weight: Share = key(
        0.9, "bound of a silo's prior, constant or energy weight in a class that others hold too"
    )
    parallel_levels: Positive = key(1, "timesteps asked about in one message", acts_with={"sampler": ONE_STEP})

    @classmethod
    def defaults(cls, flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Change the defaults by ``dfd-preset``, and take weights that suit the sampler if one was chosen."""
        plain, preset = super().defaults(flat), cls.PRESETS.get(str(flat["dfd-preset"]), {})
        sums, replicas = flat["secure-aggregation"] is True, flat["aggregators"] != "server"
        constant = sums or replicas or flat["sampler"] not in (AUTO, *STOCHASTIC)
        suited: dict[str, Scalar] = {"weights": "constant"} if constant else {}
        defaults = {**plain, **suited, **preset}
        values = {name: default if flat[name] == AUTO else flat[name] for name, default in defaults.items()}
        conditions = {kebab(name): facts_of(info).acts_with for name, info in cls.model_fields.items()}
        # What the preset says of a key does not count where the user's choices keep the key from acting.
        return {
            name: plain[name] if why_idle(name, default, conditions[name], values) else default
            for name, default in defaults.items()
        }

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.weights == "posterior" and self.sampler not in STOCHASTIC:
            raise ValueError(
                f"weights = 'posterior' needs sampler = {one_of_words(map(repr, STOCHASTIC))}, not '{self.sampler}':"
                " only paths whose moves carry noise can be followed; set weights = 'constant' or 'energy'"
            )
        if self.parallel_levels > 1 and self.sampler not in ONE_STEP:
            raise ValueError(
                f"parallel-levels = {self.parallel_levels} needs sampler = {one_of_words(map(repr, ONE_STEP))}, not"
                f" '{self.sampler}': only moves that depend on one timestep can be made in parallel; set"
                " parallel-levels = 1"
            )
        if self.step_scale * self.score_scale >= 2:
            raise ValueError(
                f"score-scale = {self.score_scale}: must be < {2 / self.step_scale:g}, 2 / step-scale, or samples"
                " diverge"
            )
        return self


SETTINGS: dict[str, type[StrategySettings]] = {
    "fedavg": AveragingSettings,
    "fedmedian": ValuewiseSettings,
    "fedtrimmedavg": TrimmedSettings,
    "krum": KrumSettings,
    "multikrum": MultiKrumSettings,
    "bulyan": KrumSettings,
    "fedavgm": MomentumSettings,
    "fedadagrad": AdaptiveSettings,
    "fedadam": AdamSettings,
    "fedyogi": AdamSettings,
    "fedprox": FedProxSettings,
    "feddiffuse": FedDiffuseSettings,
    "fedddpm": FedDDPMSettings,
    "fedddpm-plus": FedDDPMPlusSettings,
    "dp-sum": DPSumSettings,
    "ddsa": DDSASettings,
    "dfd": DfDSettings,
    "pooled": OwnModelsSettings,
    "local": StrategySettings,
    "centralised": CentralisedSettings,
}
"""Strategy -> its settings."""
