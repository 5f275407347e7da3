"""The gate before every handler of a real silo: what its policy forbids is refused by the policy's line.

A question is counted before it is answered, so that a crash gives nothing back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import Any

import torch

from clients.context import DECODED, SiloContext
from clients.few_labels import number_of
from clients.ledger import Ledger
from clients.models.pretrained_model import brings_model
from clients.privacy_account import TRAINING
from fedsynth.audit import FEWEST
from fedsynth.config import RunConfig
from fedsynth.config.keys import kebab
from fedsynth.config.methods import DPSumSettings
from fedsynth.diffusion import count_in_adapters, count_parameters
from fedsynth.disk import folder_bytes
from fedsynth.errors import UserError
from fedsynth.ledger import LEDGER_FILE, Counts
from fedsynth.messages import (
    ConfusionRequest,
    EpsilonRequest,
    EvaluateRequest,
    GradientRequest,
    MaskedRequest,
    MaskedTrainRequest,
    PrepareRequest,
    PutShardRequest,
    Request,
    SampleRequest,
    SelectRequest,
    SumRequest,
    SynthesiseRequest,
    TrainRequest,
    TrainShardsRequest,
)
from fedsynth.plugins import is_plugin
from fedsynth.policy import AGGREGATOR_ANSWERS, SiloPolicy, besides
from fedsynth.policy.ceilings import CEILINGS, OWN_MODEL, SECONDS
from fedsynth.spec import ImageSpec

SUMS = ("masked", "masked-train", "gradient")
"""Messages whose answers are summed in secret."""
FINISH_SUMS = ("agree", "reveal")
"""Messages that finish such a sum: whoever answers one of :data:`SUMS` answers these."""
SHARDS = ("put-shard", "train-shards", "get-shard")
"""Messages that take the place of ``train`` where weights travel in shards: whoever answers that answers these."""


def refuse_kind(kind: str, silo: SiloContext) -> None:
    """Refuse a kind of message, or a strategy, before anything of the message is read.

    What the policy allows is told to every strategy. A simulated silo answers whatever there is.

    Raises:
        PolicyError: names the policy's line.
        UserError: an aggregator is asked for what takes images.
    """
    if silo.is_aggregator and kind not in AGGREGATOR_ANSWERS:
        raise UserError(f"'{kind}': this node aggregates, and holds no images")
    if silo.simulated:
        return
    policy, strategy, kind = silo.policy, silo.config.run.strategy, kind.replace("_", "-")
    # What a sum that was not answered is finished with, the silo's record of its sums refuses.
    kind = "train" if kind in SHARDS else kind
    kinds = SUMS if kind in FINISH_SUMS else (kind,)
    if not set(kinds).intersection(policy.answers):
        kind = SUMS[0] if kind in FINISH_SUMS else kind
        policy.refuse("answers", f"'{kind}' is not answered here")
    if kind != "describe" and "any" not in policy.strategies and strategy not in policy.strategies:
        policy.refuse("strategies", f"the run's strategy is '{strategy}'")
    aggregators = silo.config.replicas.aggregators
    if kind != "describe" and aggregators not in policy.aggregators:
        policy.refuse("aggregators", f"the run has aggregators = '{aggregators}'")


@contextmanager
def admitted(request: Request[Any], silo: SiloContext, asked: Counts) -> Iterator[None]:
    """Count a question, and then the seconds of the block that answers it; ``asked`` keeps what was counted.

    A simulated silo counts nothing: it belongs to whoever asks.

    Raises:
        PolicyError: a ceiling is reached, or what is asked is forbidden by itself.
        UserError: the ledger is damaged or cannot be written.
    """
    if silo.simulated:
        yield
        return
    _refuse_by_itself(request, silo)
    with silo.explained_state():
        ledger, run = _counted(asked, request, silo), str(silo.run_and_node[0])
        if not silo.config.private and (spec := _trained_spec(request, silo)) is not None:
            silo.privacy_account().spend(TRAINING, None, silo.image_files(spec).key)
    start = time.monotonic()
    left = {
        field: silo.policy.limit(field) - sums.get(SECONDS, 0)
        for field, sums in zip(CEILINGS[SECONDS], ledger.counts(run), strict=True)
    }
    silo.deadline_field = min(left, key=left.__getitem__)
    silo.deadline = start + left[silo.deadline_field]
    try:
        yield
    finally:
        # The question itself is counted: its answer is not lost where the seconds cannot be.
        with suppress(OSError, UserError):
            ledger.add(run, {SECONDS: round(time.monotonic() - start, 3)}, {SECONDS: (inf, inf)})


def _counted(asked: Counts, request: Request[Any], silo: SiloContext) -> Ledger:
    ledger, run = Ledger(silo.state / LEDGER_FILE), str(silo.run_and_node[0])
    _refuse_other_format(request, ledger, run)
    in_run, in_all = ledger.counts(run)
    for field, sums, whose in zip(CEILINGS[SECONDS], (in_run, in_all), ("this run has", "all runs have"), strict=True):
        if sums.get(SECONDS, 0) >= silo.policy.limit(field):
            silo.policy.refuse(field, f"{whose} had {sums.get(SECONDS, 0):.0f} s")
    if isinstance(request, PrepareRequest) and in_run.get(OWN_MODEL):
        asked.clear()  # a slice of a training that was counted as a whole
    counted = {name: value for name, value in asked.items() if name in CEILINGS}
    limits = {name: (_limit(silo.policy, one), _limit(silo.policy, other)) for name, (one, other) in CEILINGS.items()}
    if counted and (name := ledger.add(run, counted, limits)):
        _refuse_ceiling(name, counted[name], ledger.counts(run), silo.policy)
    return ledger


def _refuse_other_format(request: Request[Any], ledger: Ledger, run: str) -> None:
    """Hold a run to the first format that it names: its model is counted once, and in another it would be another."""
    spec = getattr(request, "spec", None)
    if isinstance(spec, ImageSpec):
        named = json.dumps([spec.channels, spec.size, *spec.classes]).encode()
        number = int.from_bytes(hashlib.sha256(named).digest()[:6])
        if ledger.first(run, "image-format", number) != number:
            raise UserError("classes, size or channels are not those of this run's first message: start another run")


def told_policy(silo: SiloContext) -> str:
    """Return what the server is told of the policy, as JSON; of a ceiling for all runs, what is left of it."""
    told = silo.policy.public()
    if not silo.simulated:
        if brings_model(silo):
            # Nothing is trained for this run: what forbids training forbids none of it.
            told["least-training-images"] = 1
        if (left := silo.privacy_account().left()) < inf:
            told["privacy-epsilon"] = left
        _, in_all = Ledger(silo.state / LEDGER_FILE).counts("")
        for name, (_, field) in CEILINGS.items():
            if field and (most := silo.policy.limit(field)) < inf:
                told[kebab(field)] = max(0, int(most - in_all.get(name, 0)))
    return json.dumps(told)


def asked_of(request: Request[Any], silo: SiloContext) -> Counts:
    """Return what a question asks, in the words of the policy and the audit."""
    match request:
        case EpsilonRequest():
            return {"noise-queries": 1, "samples": len(request.samples), **_least_holders(request)}
        case MaskedRequest():
            return {"noise-queries": 1, "samples": len(request.samples), FEWEST: _fewest_summed(request)}
        case SampleRequest():
            return {"images-drawn": len(request.labels), **_least_holders(request)}
        case TrainRequest() | TrainShardsRequest():
            return {"optimiser-steps": request.steps}
        case MaskedTrainRequest():
            return {"optimiser-steps": request.steps, FEWEST: _fewest_summed(request)}
        case GradientRequest():
            return {"optimiser-steps": 1, FEWEST: _fewest_summed(request)}
        case PrepareRequest() if request.train_seconds and not brings_model(silo):
            return {"optimiser-steps": silo.config.own_steps, OWN_MODEL: 1}
        case EvaluateRequest():
            return {"evaluations": 1}
    return _few_labels_asked(request)


def _few_labels_asked(request: Request[Any]) -> Counts:
    match request:
        case ConfusionRequest() | SelectRequest():
            return {"classifier-questions": 1}
        case SynthesiseRequest():
            return {"images-drawn": sum(request.quota)}
    return {}


def _fewest_summed(request: SumRequest) -> int:
    return int((request.weights > 0).sum(0).min())


def _least_holders(request: EpsilonRequest | SampleRequest) -> Counts:
    """Return the fewest holders that the server states of a class it asks about."""
    holders = request.holders or ()
    labels = [label for label in request.labels.unique().tolist() if label < len(holders)]
    return {FEWEST: min(holders[label] for label in labels)} if labels else {}


def _refuse_by_itself(request: Request[Any], silo: SiloContext) -> None:
    policy, config = silo.policy, silo.config
    spec = getattr(request, "spec", None)
    if isinstance(spec, ImageSpec) and spec.size > policy.limit("largest_image_size"):
        policy.refuse("largest_image_size", f"images of {spec.size} pixels are asked for")
    if isinstance(request, EpsilonRequest | MaskedRequest) and max(request.samples.shape[2:]) > policy.limit(
        "largest_image_size"
    ):
        policy.refuse("largest_image_size", f"samples of {max(request.samples.shape[2:])} pixels are asked about")
    if isinstance(request, EpsilonRequest | SampleRequest) and policy.least_holders > 1:
        _refuse_few_holders(request.labels, request.holders or (), policy)
    match request:
        case EpsilonRequest() | MaskedRequest() if len(request.samples) > policy.limit("samples_per_query"):
            policy.refuse("samples_per_query", f"{len(request.samples)} samples are asked about")
        case SampleRequest():
            # However few images are asked for, the noise of the whole set is drawn.
            if (size := request.set_size or config.sampling.num_samples) > policy.limit("images_drawn_in_all"):
                policy.refuse("images_drawn_in_all", f"the run's set is to have {size} images")
            _refuse_foreign_sampler(request.sampler, policy)
        case SynthesiseRequest():
            _refuse_foreign_sampler(request.sampler, policy)
        case GradientRequest():
            _refuse_few_colluders(config, policy)
            _refuse_training(request.spec, config.train_steps, silo)
        case PutShardRequest() | TrainRequest() | TrainShardsRequest() | MaskedTrainRequest() | PrepareRequest():
            _refuse_model(request, silo)


def _refuse_foreign_sampler(sampler: str, policy: SiloPolicy) -> None:
    if is_plugin(sampler) and sampler not in policy.plugins:
        policy.refuse("plugins", f"sampler '{sampler}' would have to be imported")


def _refuse_few_colluders(config: RunConfig, policy: SiloPolicy) -> None:
    reckoned = config.settings.dp_colluders if isinstance(config.settings, DPSumSettings) else 0
    if reckoned < policy.least_colluders:
        policy.refuse("least_colluders", f"the run's dp-colluders is {reckoned}")


def _refuse_model(
    request: PutShardRequest | TrainRequest | TrainShardsRequest | MaskedTrainRequest | PrepareRequest,
    silo: SiloContext,
) -> None:
    if isinstance(request, PutShardRequest):
        _refuse_room(request.spec, silo)
        return
    if isinstance(request, PrepareRequest) and brings_model(silo) and silo.policy.privacy_epsilon != "unlimited":
        why = "nobody here knows what the model of --model-path has cost these images"
        silo.policy.refuse("privacy_epsilon", why)
    if (spec := _trained_spec(request, silo)) is not None:
        steps = silo.config.own_steps if isinstance(request, PrepareRequest) else request.steps
        trained = None
        if isinstance(request, TrainRequest | PrepareRequest) and request.images is not None:
            trained = partial(number_of, request, silo=silo)
        _refuse_training(spec, steps, silo, trained)


def _trained_spec(request: Request[Any], silo: SiloContext) -> ImageSpec | None:
    """Return the format of the images that a question has a network trained on; None: it asks for no training."""
    match request:
        case TrainRequest() | TrainShardsRequest() | MaskedTrainRequest():
            return request.spec
        case PrepareRequest() if request.train_seconds and not brings_model(silo):
            return request.spec
    return None


def _refuse_few_holders(labels: torch.Tensor, holders: Sequence[int], policy: SiloPolicy) -> None:
    for label in labels.unique().tolist():
        if label >= len(holders) or holders[label] < policy.least_holders:
            said = holders[label] if label < len(holders) else "nothing"
            policy.refuse("least_holders", f"of the holders of class index {label} the server says {said}")


def _refuse_training(
    spec: ImageSpec, steps: int, silo: SiloContext, trained: Callable[[int], int] | None = None
) -> None:
    policy = silo.policy
    if policy.privacy_epsilon != "unlimited" and not silo.config.private:
        policy.refuse("privacy_epsilon", "the run trains without differential privacy: it has no dp-epsilon")
    _refuse_room(spec, silo)
    _refuse_few_images(spec, steps, silo, trained)


def _refuse_room(spec: ImageSpec, silo: SiloContext) -> None:
    """Refuse a network that is too large for this silo, or any where its disk is to hold no more."""
    policy = silo.policy
    if (most := policy.limit("network_parameters")) < inf:
        parameters = count_parameters(silo.config, spec)
        if parameters > most:
            more = besides(count_in_adapters(silo.config, spec))
            policy.refuse("network_parameters", f"the run's network has {parameters}{more}")
    if (most := policy.limit("disk_mb")) < inf and (used := _kept_bytes(silo) / 1e6) >= most:
        policy.refuse("disk_mb", f"state folder '{silo.state}' holds {used:.0f} MB")


def _kept_bytes(silo: SiloContext) -> int:
    """Return the bytes of the state folder without decoded images, which have the same bound for themselves."""
    return folder_bytes(silo.state) - folder_bytes(silo.state / DECODED)


def _refuse_few_images(
    spec: ImageSpec, steps: int, silo: SiloContext, trained: Callable[[int], int] | None = None
) -> None:
    """Refuse to train on few images, however a run brings that about: by what it holds out, or by few small steps.

    ``trained`` says how many images are trained on, of how many labelled ones, where these are others.
    """
    policy, batch, held_out = silo.policy, silo.config.training.batch_size, silo.largest_holdout
    if held_out > policy.largest_holdout_fraction:
        groups = ", of which whole groups can be twice as much" if silo.group_column else ""
        asked = silo.config.data.holdout_fraction
        policy.refuse("largest_holdout_fraction", f"the run's holdout-fraction is {asked}{groups}")
    if (least := policy.least_training_images) == 1:
        return
    # A private step draws from all images, with noise on whatever it draws.
    if not silo.config.private and steps * batch < least:
        policy.refuse("least_training_images", f"{steps} steps of {batch} images are asked for")
    with silo.explained_state():
        # The noisy counts: exact ones would tell how many images there are, by where a run is refused.
        told = int(silo.released(spec).training_counts(spec.classes, held_out).sum())
    if (told if trained is None else trained(told)) < least:
        policy.refuse("least_training_images", "there are fewer images here to train on")


def _refuse_ceiling(name: str, asked: float, counts: tuple[Counts, Counts], policy: SiloPolicy) -> None:
    for field, sums, where in zip(CEILINGS[name], counts, ("in this run", "in all runs"), strict=True):
        if sums.get(name, 0) + asked > _limit(policy, field):
            policy.refuse(field, f"{asked:g} more asked for, {sums.get(name, 0):g} answered {where}")


def _limit(policy: SiloPolicy, field: str) -> float:
    return policy.limit(field) if field else inf
