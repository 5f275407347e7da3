"""The sections of a run's configuration that say how silos cooperate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsynth.config.types import AUTO, Auto, BelowOne, Count, Positive, PositiveFloat, Section


class Averaging(Section):
    """Parameter averaging; words as in Flower."""

    fraction_train: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        AUTO, description="share of the silos that train in a round"
    )
    min_train_nodes: Positive | Auto = Field(AUTO, description="least number of silos that train in a round")
    num_malicious_nodes: Count | Auto = Field(AUTO, description="f, hostile silos to survive (krum, multikrum, bulyan)")
    num_nodes_to_select: Count | Auto = Field(
        AUTO, description="models averaged by multikrum; 0: all but num-malicious-nodes"
    )
    beta: Annotated[float, Field(ge=0, lt=0.5)] | Auto = Field(
        AUTO, description="share of the values cut at each end (fedtrimmedavg)"
    )
    server_learning_rate: PositiveFloat | Auto = Field(AUTO, description="step along the mean update (fedavgm)")
    server_momentum: BelowOne | Auto = Field(AUTO, description="weight of past updates (fedavgm)")
    eta: PositiveFloat | Auto = Field(AUTO, description="server step (fedadam, fedyogi, fedadagrad)")
    tau: PositiveFloat | Auto = Field(AUTO, description="adaptivity: larger is nearer to plain averaging (the same)")
    beta_1: BelowOne | Auto = Field(AUTO, description="decay of the first moment (fedadam, fedyogi)")
    beta_2: BelowOne | Auto = Field(AUTO, description="decay of the second moment (fedadam, fedyogi)")
    proximal_mu: Annotated[float, Field(ge=0)] | Auto = Field(
        AUTO, description="pull of local training towards the global weights (fedprox)"
    )
    feddiffuse_method: Literal["auto", "full", "usplit", "ulatdec", "udec"] = Field(
        AUTO, description="which parts of the U-Net travel (feddiffuse)"
    )
    aux_samples: Positive | Auto = Field(AUTO, description="images in the auxiliary set (fedddpm, fedddpm-plus)")
    server_steps: Positive | Auto = Field(AUTO, description="optimiser steps of one correction (the same)")
    correction_learning_rate: PositiveFloat | Auto = Field(AUTO, description="Adam's in a correction (the same)")
    slow_window: Positive | Auto = Field(AUTO, description="rounds over which progress is judged (fedddpm-plus)")
    slow_tolerance: BelowOne | Auto = Field(
        AUTO, description="a relative drop of the loss below it is slow (fedddpm-plus)"
    )
    correct_once: bool | Auto = Field(AUTO, description="correct once a run, not whenever slow (fedddpm-plus)")


class Cooperation(Section):
    """Cooperative inference (strategy dfd)."""

    dfd_preset: Literal["default", "paper"] = Field("default", description="what the auto keys of dfd resolve to")
    dfd_rounds: Positive | Auto = Field(AUTO, description="noise levels visited, one round each")
    prior: Literal["auto", "uniform", "size", "class"] = Field(AUTO, description="prior weight of a silo")
    weights: Literal["auto", "constant", "energy", "posterior"] = Field(
        AUTO, description="what moves the prior: nothing, the energy (paper) or the path"
    )
    temperature: Annotated[float, Field(ge=1)] | Auto = Field(
        AUTO, description="1: posterior weights; larger: nearer to constant ones (weights=posterior)"
    )
    energy_scale: Annotated[float, Field(ge=0)] | Auto = Field(AUTO, description="lambda in the energy weights")
    score_scale: PositiveFloat | Auto = Field(AUTO, description="lambda in the score, a temperature (sampler=ula)")
    step_scale: Annotated[float, Field(gt=0, le=0.5)] | Auto = Field(
        AUTO, description="c of the Langevin step size (sampler=ula)"
    )
    screening: bool = Field(True, description="leave out answers that no model of images could give")
    max_silo_weight: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        AUTO, description="largest weight of a silo in a class that others hold too"
    )
    parallel_levels: Positive | Auto = Field(
        AUTO, description="noise levels asked about in one message (sampler=ddim or ddpm)"
    )
