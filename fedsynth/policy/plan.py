"""What a run will ask of one silo, known before anybody is asked, and which lines of a policy forbid it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod
from typing import NamedTuple

from fedsynth.config import RunConfig
from fedsynth.config.methods import (
    AveragingSettings,
    DDSASettings,
    DfDSettings,
    DPSumSettings,
    FedDDPMPlusSettings,
    FedDDPMSettings,
    FedDiffuseSettings,
    StrategySettings,
)
from fedsynth.config.types import OWN_MODELS
from fedsynth.message_size import NETWORK_BATCH, rows_in
from fedsynth.plugins import is_plugin
from fedsynth.policy.policy import Aggregators, MessageKind, SiloPolicy
from fedsynth.spec import ImageSpec

CALIBRATION_QUERIES = 4
"""Noise queries before the rounds of cooperative inference, where answers are screened."""
CALIBRATION_SAMPLES = 8
"""Samples of every class in each of them."""

_UNMEASURED = "will not measure the result"
_WITHOUT: dict[MessageKind, str] = {
    "statistics": _UNMEASURED,
    "evaluate": _UNMEASURED,
    "sample": "draws no images of classes that few hold",
}
"""Kind of message that a run can do without -> what becomes of it where a silo refuses."""


@dataclass(frozen=True)
class Plan:
    """What a run asks one silo at most, if nothing goes wrong.

    Attributes:
        answers: kinds of message that the run cannot do without.
        optional: kinds whose answers it can do without.
        noise_queries: messages ``epsilon``.
        samples_per_query: samples in the largest of them.
        images_drawn: images that the silo draws; where labels are few, those that silos lack come on top.
        classifier_questions: messages ``confusion`` and ``select``.
        optimiser_steps: training steps.
        network_parameters: weights of the network that is trained, whole or by adapters; 0: none is, or it is not
            known.
        adapter_parameters: numbers that are trained in adapters beside them; 0: they are trained themselves.
        largest_image_size: side of the run's images in pixels.
        strategy: name of the strategy.
        aggregators: who combines what the silos send.
        plugins: what the run wants imported at the silo.
        trains: whether images are trained on.
        least_training_images: images drawn in its shortest training; 0: it trains nothing.
        training_images: images that the silo trains on at least; None: not known.
        holdout_fraction: share of the images that is kept out of training at most.
        dp_epsilon: ε that its training spends; infinity: it trains without differential privacy.
        colluders: silos that its noise reckons with as helpers of the server; None: it has no noise of that kind.
        needs_loss: whether the server acts on the loss of a round of training.
        complete: False for a strategy that is a plug-in, whose messages nobody knows in advance.
    """

    answers: tuple[MessageKind, ...]
    strategy: str
    aggregators: Aggregators = "server"
    optional: tuple[MessageKind, ...] = ()
    noise_queries: int = 0
    samples_per_query: int = 0
    images_drawn: int = 0
    classifier_questions: int = 0
    optimiser_steps: int = 0
    network_parameters: int = 0
    adapter_parameters: int = 0
    largest_image_size: int = 0
    plugins: tuple[str, ...] = ()
    trains: bool = False
    least_training_images: int = 0
    training_images: int | None = None
    holdout_fraction: float = 0.0
    dp_epsilon: float = inf
    colluders: int | None = None
    needs_loss: bool = False
    complete: bool = True


@dataclass(frozen=True)
class Refusal:
    """A line of a policy that forbids a part of a plan.

    Attributes:
        line: as it stands in the policy.
        why: what the run would ask.
        optional: what the silo does not do then, where the run can do without; empty: it cannot.
    """

    line: str
    why: str
    optional: str = ""

    def __str__(self) -> str:
        return f"line '{self.line}': {self.why}"


def plan_of(
    config: RunConfig,
    spec: ImageSpec,
    network_parameters: int = 0,
    num_samples: int | None = None,
    training_images: int | None = None,
    sample_shape: tuple[int, ...] = (),
    largest_holdout: float | None = None,
    adapter_parameters: int = 0,
) -> Plan:
    """Return what a run asks one silo.

    Args:
        config: the run's.
        spec: format and classes of its images.
        network_parameters: weights of its network; 0: not known.
        num_samples: images of the synthetic set whose class the silo holds; None: all.
        training_images: images that it trains on; None: not known.
        sample_shape: of what its networks see of an image; empty: as many numbers as the image has.
        largest_holdout: share of its images that is held out at most; None: the run's ``holdout-fraction``.
        adapter_parameters: numbers in the adapters beside its network; 0: the network itself is trained.
    """
    name, settings = config.run.strategy, config.settings
    held = config.sampling.num_samples if num_samples is None else num_samples
    answers: list[MessageKind] = ["describe", "prepare"]
    queries = samples = drawn = steps = 0
    shortest: list[int] = []
    if name in OWN_MODELS:
        steps += config.own_steps
        shortest.append(config.own_steps)
    if isinstance(settings, AveragingSettings):
        answers += _in_rounds(config)
        few = _few_labels(settings)
        answers += few.asks
        own = config.own_steps if isinstance(settings, DDSASettings) and settings.own_models else 0
        steps += (own or config.train_steps) + few.steps
        shortest += [own or config.train_steps // settings.num_rounds, *few.shortest]
    if isinstance(settings, DPSumSettings):
        answers.append("gradient")
        steps += config.train_steps
        shortest.append(config.train_steps)
    if isinstance(settings, FedDDPMSettings):
        answers.append("upload")
    if (of_its_own := _images_of_its_own(config, held)) is not None:
        answers.append("sample")
        drawn = of_its_own
    optional: list[MessageKind] = []
    if (cooperation := _cooperation(settings)) is not None:
        answers += _in_cooperation(config)
        if config.cooperation.few_holders == "pooled":
            optional.append("sample")
            drawn = held
        numbers = prod(sample_shape or spec.shape)
        queries, samples = _noise_queries(config, cooperation, len(spec.classes), numbers, held)
    if config.evaluation.evaluate_silos and name != "local":
        optional += ["statistics", "evaluate"]
    sampler = settings.sampler
    return Plan(
        answers=tuple(answers),
        strategy=name,
        aggregators=config.replicas.aggregators,
        optional=tuple(optional),
        noise_queries=queries,
        samples_per_query=samples,
        images_drawn=drawn,
        classifier_questions=sum(kind in ("confusion", "select") for kind in answers),
        optimiser_steps=steps,
        network_parameters=network_parameters,
        adapter_parameters=adapter_parameters,
        largest_image_size=spec.size,
        plugins=(sampler,) if "sample" in answers and is_plugin(sampler) else (),
        trains=steps > 0,
        # Without labels, it depends on pseudo-labels.
        training_images=training_images if training_images or settings.labels_everywhere else None,
        least_training_images=min(shortest, default=0) * config.training.batch_size,
        holdout_fraction=(config.data.holdout_fraction if largest_holdout is None else largest_holdout)
        if shortest
        else 0.0,
        dp_epsilon=inf if config.privacy.dp_epsilon == "none" else config.privacy.dp_epsilon,
        colluders=settings.dp_colluders if isinstance(settings, DPSumSettings) else None,
        needs_loss=isinstance(settings, FedDDPMPlusSettings),
        complete=not is_plugin(name),
    )


def _cooperation(settings: StrategySettings) -> DfDSettings | None:
    """Return the settings of a run's noise queries; None: it has none."""
    if isinstance(settings, DDSASettings) and settings.diffusion_strategy == "dfd":
        return settings.cooperation()
    return settings if isinstance(settings, DfDSettings) else None


def _images_of_its_own(config: RunConfig, held: int) -> int | None:
    """Return how many images a silo draws from its own model or part of one; None: the server draws them."""
    name, settings = config.run.strategy, config.settings
    if name == "local":
        return config.sampling.num_samples
    has_a_part = isinstance(settings, FedDiffuseSettings) and settings.feddiffuse_method != "full"
    pooled = name == "pooled" or (isinstance(settings, DDSASettings) and settings.diffusion_strategy == "pooled")
    return held if pooled or has_a_part else None


class _FewLabels(NamedTuple):
    asks: tuple[MessageKind, ...] = ()
    steps: int = 0
    shortest: tuple[int, ...] = ()


def _few_labels(settings: AveragingSettings) -> _FewLabels:
    """Return what a strategy asks besides averaging one model, where labels are few."""
    if not isinstance(settings, DDSASettings):
        return _FewLabels()
    steps = settings.classifier_steps * len(settings.classifiers)
    return _FewLabels(settings.asks, steps, (settings.classifier_steps // settings.classifier_rounds,))


def _in_rounds(config: RunConfig) -> list[MessageKind]:
    if config.replicated:
        return ["train", *_aggregating(config)]
    return ["masked-train" if config.cooperation.secure_aggregation else "train"]


def _in_cooperation(config: RunConfig) -> list[MessageKind]:
    if config.replicated:
        return ["epsilon", *_aggregating(config)]
    return ["masked" if config.cooperation.secure_aggregation else "epsilon"]


def _aggregating(config: RunConfig) -> list[MessageKind]:
    return [] if config.num_aggregators else ["aggregate"]


def _noise_queries(config: RunConfig, settings: DfDSettings, classes: int, numbers: int, held: int) -> tuple[int, int]:
    """Return messages, and samples in the largest."""
    exchange = config.exchange
    most = rows_in(exchange.max_message_mb, numbers, exchange.wire_dtype)
    piece = min(most, NETWORK_BATCH)
    per_message = most // piece
    if config.replicated:
        # One statement a round is about one question; nobody is asked before the rounds.
        return settings.dfd_rounds, held
    pieces = settings.parallel_levels * -(-held // piece)
    queries = settings.dfd_rounds * -(-pieces // per_message)
    samples = min(per_message * piece, settings.parallel_levels * held)
    if config.cooperation.screening and not config.cooperation.secure_aggregation and settings.sampler != "ula":
        queries += CALIBRATION_QUERIES
        samples = max(samples, CALIBRATION_SAMPLES * classes)
    return queries, samples


_CEILINGS = {
    "noise_queries": ("noise_queries_per_run", "noise_queries_in_all"),
    "samples_per_query": ("samples_per_query",),
    "images_drawn": ("images_drawn_per_run", "images_drawn_in_all"),
    "classifier_questions": ("classifier_questions_in_all",),
    "optimiser_steps": ("optimiser_steps_per_run", "optimiser_steps_in_all"),
    "holdout_fraction": ("largest_holdout_fraction",),
    "network_parameters": ("network_parameters",),
    "largest_image_size": ("largest_image_size",),
}
"""Field of a plan -> fields of a policy that bound it."""


def refusals(policy: SiloPolicy, plan: Plan) -> list[Refusal]:
    """Return every line of a policy that forbids a part of a plan."""
    return list(_refusals(policy, plan))


def _refused_by_name(policy: SiloPolicy, plan: Plan) -> Iterator[Refusal]:
    if "any" not in policy.strategies and plan.strategy not in policy.strategies:
        yield Refusal(policy.line("strategies"), f"the run's strategy is '{plan.strategy}'")
    if plan.aggregators not in policy.aggregators:
        yield Refusal(policy.line("aggregators"), f"the run has aggregators = '{plan.aggregators}'")


def _refusals(policy: SiloPolicy, plan: Plan) -> Iterator[Refusal]:
    yield from _refused_by_name(policy, plan)
    absent: dict[str, list[str]] = {}
    for kind in (*plan.answers, *plan.optional):
        if kind not in policy.answers:
            absent.setdefault(_WITHOUT[kind] if kind in plan.optional else "", []).append(repr(kind))
    for optional, kinds in absent.items():
        yield Refusal(policy.line("answers"), f"the run asks {', '.join(kinds)}", optional)
    for name, ceilings in _CEILINGS.items():
        asked = getattr(plan, name)
        optional = _WITHOUT["sample"] if name == "images_drawn" and "sample" in plan.optional else ""
        for ceiling in ceilings:
            if asked > policy.limit(ceiling):
                what = name.replace("_", " ")
                more = besides(plan.adapter_parameters) if name == "network_parameters" else ""
                yield Refusal(policy.line(ceiling), f"the run asks up to {asked} {what}{more}", optional)
    if foreign := [name for name in plan.plugins if name not in policy.plugins]:
        yield Refusal(policy.line("plugins"), f"the run wants {', '.join(foreign)} imported")
    if plan.trains:
        yield from _training_refusals(policy, plan)


def besides(adapter_parameters: int) -> str:
    """Say what is trained beside a network whose own weights stay as they are; nothing where they do not."""
    if not adapter_parameters:
        return ""
    return f", which all count for memory and time although it trains {adapter_parameters} in adapters beside them"


def _training_refusals(policy: SiloPolicy, plan: Plan) -> Iterator[Refusal]:
    if plan.least_training_images < policy.least_training_images and plan.dp_epsilon == inf:
        why = f"the run trains on {plan.least_training_images} images at a time"
        yield Refusal(policy.line("least_training_images"), why)
    if plan.training_images is not None and plan.training_images < policy.least_training_images:
        yield Refusal(policy.line("least_training_images"), "the silo has fewer images to train on")
    if plan.colluders is not None and plan.colluders < policy.least_colluders:
        yield Refusal(policy.line("least_colluders"), f"the run's dp-colluders is {plan.colluders}")
    if plan.needs_loss and not policy.tell_train_loss:
        yield Refusal(policy.line("tell_train_loss"), "the run corrects its model where the silos' loss falls slowly")
    if plan.dp_epsilon > policy.limit("privacy_epsilon"):
        why = f"the run's dp-epsilon is {plan.dp_epsilon:g}"
        without = "the run trains without differential privacy: it has no dp-epsilon"
        yield Refusal(policy.line("privacy_epsilon"), without if plan.dp_epsilon == inf else why)
