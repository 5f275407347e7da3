"""The sections of a run's configuration: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from fedsynth.config.methods import Averaging, Cooperation
from fedsynth.config.types import (
    AUTO,
    Auto,
    BelowOne,
    ClassifierName,
    Count,
    DatasetName,
    FeatureExtractorName,
    PartitionName,
    PluginName,
    Positive,
    PositiveFloat,
    PresetName,
    SamplerName,
    Section,
    StrategyName,
)


class Run(Section):
    """What is run, where it writes and how it is repeated."""

    strategy: StrategyName | PluginName = Field("dfd", description="how the silos cooperate")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    num_clients: Positive = Field(10, description="number of silos")
    num_rounds: Positive | Auto = Field(AUTO, description="rounds of an averaging strategy")
    output_dir: str = Field("runs", description="folder that receives one folder a run")
    run_name: str = Field(AUTO, min_length=1, description="name of the run folder; auto: time-strategy-dataset-seed")
    state_dir: str = Field(".fedsynth", description="where simulated silos keep their local models")
    resume: str = Field("", description="run folder to continue; the other keys must be that run's")
    device: Literal["auto", "cpu", "cuda"] = Field(AUTO, description="auto: CUDA when a process sees it")


class Data(Section):
    """The images and how simulated silos share them."""

    dataset: DatasetName | PluginName = Field("digits", description="images of a simulated run; silos: real silos' own")
    data_root: str = Field("", description="folder that holds the dataset (not needed for digits)")
    download: bool = Field(False, description="let torchvision fetch a dataset that data-root lacks")
    image_size: Positive | Auto = Field(AUTO, description="side in pixels; auto: the dataset's own")
    class_names: str = Field("", description="classes of real silos, such as 'cat,dog'; empty: all that they hold")
    skip_bad_images: bool = Field(False, description="leave out unreadable files instead of refusing the folder")
    partition: PartitionName = Field("dirichlet", description="how labels spread over simulated silos")
    alpha: PositiveFloat = Field(0.1, description="Dirichlet concentration; smaller is more uneven")
    classes_per_client: Positive = Field(3, description="distinct classes a silo under partition=pathological")
    samples_per_client: int = Field(0, ge=0, description="mean images a silo; 0: all")
    holdout_fraction: float = Field(0.1, ge=0, lt=1, description="share of a silo's images never trained on")

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Data:
        names = self.classes()
        if names is not None and (not all(names) or len(set(names)) < len(names)):
            raise ValueError(f"class-names = '{self.class_names}': must be distinct names, such as 'cat,dog'")
        return self

    def classes(self) -> tuple[str, ...] | None:
        """``class-names`` one by one, or None for all that the silos hold."""
        return tuple(name.strip() for name in self.class_names.split(",")) if self.class_names else None


class Model(Section):
    """The U-Net."""

    model: PresetName | Auto = Field(AUTO, description="U-Net preset; auto: the dataset's")
    block_out_channels: str = Field(AUTO, description="channels a level, such as '32,64,64'; auto: the preset's")
    layers_per_block: Positive | Auto = Field(AUTO, description="residual layers a level; auto: the preset's")

    @model_validator(mode="after")
    def _channels_are_numbers(self) -> Model:
        self.channels()
        return self

    def channels(self) -> tuple[int, ...] | None:
        """``block-out-channels`` as numbers, or None for the preset's."""
        if self.block_out_channels == AUTO:
            return None
        try:
            channels = tuple(int(word) for word in self.block_out_channels.split(","))
        except ValueError:
            channels = ()
        if not channels or any(c < 4 or c % 4 for c in channels):
            raise ValueError(
                f"block-out-channels = '{self.block_out_channels}': must be multiples of 4, such as '32,64'"
            )
        return channels


class Training(Section):
    """Local training of one silo."""

    train_steps: Positive = Field(
        900, description="optimiser steps a silo, over all rounds of an averaging strategy or of its own model"
    )
    local_steps: Positive | Auto = Field(AUTO, description="optimiser steps of a silo's own model; auto: train-steps")
    batch_size: Positive = Field(32, description="images a step")
    learning_rate: PositiveFloat = Field(2e-4, description="Adam's")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="decay of the weight average, after its warm-up")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    oversample: bool = Field(False, description="draw a silo's classes equally often, however rare")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: autocast, on CUDA only")
    early_stop: bool = Field(True, description="end a silo's own model when its loss on held-out images stops falling")
    copy_check: bool = Field(True, description="have a silo say how often its own model copies training images")

    @property
    def own_steps(self) -> int:
        """Optimiser steps of a silo's own model."""
        return self.train_steps if self.local_steps == AUTO else self.local_steps


class Diffusion(Section):
    """The noise schedule (linear, Ho et al. 2020)."""

    num_train_timesteps: Positive = Field(1000, description="noise levels T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta")

    @model_validator(mode="after")
    def _ends_in_noise(self) -> Diffusion:
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta-end = {self.beta_end}: must be > beta-start = {self.beta_start}")
        last = self.last_alpha_cumprod()
        if last > 0.01:
            raise ValueError(
                f"num-train-timesteps = {self.num_train_timesteps} leaves {last:.2f} of the signal's variance at the"
                " last level (at most 0.01 is allowed, since sampling starts from pure noise):"
                " raise num-train-timesteps or beta-end"
            )
        return self

    def last_alpha_cumprod(self) -> float:
        """ᾱ_T, the share of the signal's variance left at the last noise level."""
        steps = max(self.num_train_timesteps - 1, 1)
        product = 1.0
        for t in range(self.num_train_timesteps):
            product *= 1 - (self.beta_start + (self.beta_end - self.beta_start) * t / steps)
        return product


class Sampling(Section):
    """The synthetic set and how it is drawn."""

    num_samples: Positive = Field(1000, description="images in the synthetic set")
    labels: Literal["balanced", "observed"] = Field("balanced", description="label frequencies of the synthetic set")
    sampler: SamplerName | PluginName | Auto = Field(AUTO, description="how samples move between noise levels")
    sampling_steps: Positive = Field(10, description="noise levels visited when one model is sampled")
    sample_from: Literal["auto", "raw", "ema"] = Field(AUTO, description="weights an averaging strategy samples from")
    server_ema_decay: BelowOne | Auto = Field(
        AUTO, description="weight of the past in the average over rounds (sample-from=ema)"
    )
    generator_steps: Count = Field(
        0, description="optimiser steps of a model that the server trains on the finished set; 0: none (dfd, pooled)"
    )


class Exchange(Section):
    """Messages between server and silos."""

    wire_dtype: Literal["float32", "float16"] = Field("float32", description="precision of tensors on the wire")
    max_message_mb: PositiveFloat = Field(64.0, description="larger noise queries are cut into several messages")
    node_timeout: PositiveFloat = Field(120.0, description="seconds to wait for num-clients silos to connect")
    reply_timeout: PositiveFloat = Field(3600.0, description="seconds to wait for the answers of a round")
    round_timeout: PositiveFloat | Auto = Field(
        AUTO, description="the same in dfd; auto: ten times the slowest answer so far, 60 at least"
    )
    min_replies: Positive | Auto = Field(
        AUTO, description="sound answers a round needs; auto: one in dfd, half in averaging, else every silo's"
    )
    max_silo_images: Positive = Field(1_000_000, description="an answer that claims more images is left out")
    label_count_noise: float = Field(
        0.0, ge=0, description="scale of the noise that silos add to the label counts they release; 0: none"
    )
    fast_replies: bool = Field(False, description="wait 20 ms, not 1 s, for the rest of an answer; Flower 1.42.0 only")


class Evaluation(Section):
    """Measurements at the end of a run."""

    evaluate: bool = Field(True, description="measure the synthetic set against real images")
    feature_extractor: FeatureExtractorName | Auto = Field(
        AUTO, description="auto: Inception if its weights are on disk, else domain-classifier"
    )
    feature_extractor_weights_path: str = Field("", description="file of its weights; empty: torch hub's, or download")
    classifiers: str = Field("logistic-regression,mlp,cnn", description="trained on the synthetic images; also: resnet")
    classifier_seeds: Positive = Field(3, description="trainings of each classifier, for means with intervals")
    resnet_weights_path: str = Field("", description="file that resnet starts from; empty: torch hub's, or none")
    reference_root: str = Field("", description="real images of the operator's own to measure against, dataset=silos")
    membership_inference: bool = Field(True, description="attack the models of a simulation: who was trained on?")
    evaluate_silos: bool = Field(False, description="have the silos measure it against theirs, which stay at home")
    min_statistics_samples: Annotated[int, Field(ge=2)] = Field(
        50, description="a silo with fewer images gives no statistics of them"
    )

    @model_validator(mode="after")
    def _classifiers_are_known(self) -> Evaluation:
        self.classifier_names()
        return self

    def classifier_names(self) -> tuple[str, ...]:
        """``classifiers`` one by one."""
        names, known = tuple(word.strip() for word in self.classifiers.split(",")), get_args(ClassifierName)
        for name in names:
            if name not in known:
                raise ValueError(f"classifiers = '{self.classifiers}': '{name}' is none of {', '.join(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"classifiers = '{self.classifiers}': name each once")
        return names


SECTIONS: dict[str, type[Section]] = {
    "run": Run,
    "data": Data,
    "model": Model,
    "training": Training,
    "diffusion": Diffusion,
    "sampling": Sampling,
    "averaging": Averaging,
    "cooperation": Cooperation,
    "exchange": Exchange,
    "evaluation": Evaluation,
}
