"""What a run will ask every silo, as text: for whoever starts it, and for a silo's operator."""

from __future__ import annotations

from collections.abc import Mapping

from fedsynth.adapter_shapes import A, B, Shape, most_rank
from fedsynth.averaging.participants import num_participants
from fedsynth.config import AUTO, RunConfig
from fedsynth.config.methods import AveragingSettings, FedDiffuseSettings
from fedsynth.config.training import LORA
from fedsynth.diffusion import codec_of, count_in_adapters, count_parameters, exchanged_shapes, training_bytes
from fedsynth.message_size import StreamNeeds, streamed_shards, weights_bytes
from fedsynth.messages.transport import tensors_bytes
from fedsynth.policy import Plan, SiloPolicy, plan_of, refusals
from fedsynth.spec import ImageSpec
from fedsynth.units import human_bytes


def planned(
    config: RunConfig,
    spec: ImageSpec | None,
    training_images: int | None = None,
    largest_holdout: float | None = None,
) -> tuple[Plan, list[str]]:
    """Return what a run asks a silo, and the same as text, a line a thing.

    Args:
        config: the run's.
        spec: format and classes of its images; None: whatever the silos have.
        training_images: images that the silo trains on at least; None: not known.
        largest_holdout: share of its images that is held out at most; None: the run's ``holdout-fraction``.
    """
    size = config.data.image_size
    if spec is None and size != AUTO:
        spec = ImageSpec(3, size, config.data.classes() or ())
    if spec is not None:
        parameters, shape = count_parameters(config, spec), codec_of(config, spec).shape
        adapters = count_in_adapters(config, spec)
        plan = plan_of(config, spec, parameters, None, training_images, shape, largest_holdout, adapters)
        return plan, [*_lines(plan), *_weights(config, spec)]
    plan = plan_of(config, ImageSpec(3, 0, ()), largest_holdout=largest_holdout)
    return plan, [*_lines(plan), "(image size and network, and with them some numbers, depend on the silos' images)"]


def _lines(plan: Plan) -> list[str]:
    lines = [f"strategy            {plan.strategy}", f"messages            {', '.join(plan.answers)}"]
    if plan.optional:
        lines.append(f"and at the end      {', '.join(plan.optional)}; the run does without where they are refused")
    amounts = {
        "noise queries": plan.noise_queries,
        "samples per query": plan.samples_per_query,
        "images drawn": plan.images_drawn,
        "classifier counts": plan.classifier_questions,
        "optimiser steps": plan.optimiser_steps,
        "training images": plan.training_images or 0,
        "network parameters": plan.network_parameters,
        "in adapters": plan.adapter_parameters,
        "image size": plan.largest_image_size,
    }
    lines += [f"{name:19} {amount:,}".replace(",", " ") for name, amount in amounts.items() if amount]
    if plan.plugins:
        lines.append(f"imports             {', '.join(plan.plugins)}")
    if not plan.complete:
        lines.append("the strategy is a plug-in: what it asks besides is not known in advance")
    return lines


def _weights(config: RunConfig, spec: ImageSpec) -> list[str]:
    """Say what training holds in memory, and what an answer takes that holds all that is trained."""
    settings, sums = config.settings, config.cooperation.secure_aggregation
    lines = [f"memory of training  {human_bytes(training_bytes(config, spec))} and what a batch takes"]
    if not isinstance(settings, AveragingSettings) or isinstance(settings, FedDiffuseSettings) or sums:
        return lines
    shapes = exchanged_shapes(config, spec)
    size = tensors_bytes(shapes, config.exchange.wire_dtype)
    lines.append(f"weights of an answer {size / 1e6:.3g} MB")
    if shards := streamed_shards(config, shapes):
        lines += _streaming(config, shapes, len(shards))
    if config.model.train == LORA and settings.lora_aggregation == "stack":
        last = tensors_bytes(stacked_shapes(config, shapes), config.exchange.wire_dtype)
        lines.append(f"weights sent to it  up to {last / 1e6:.3g} MB in the last round, since ranks add up")
    return lines


def _streaming(config: RunConfig, shapes: Mapping[str, Shape], shards: int) -> list[str]:
    """Say what it takes that weights are too large for a message."""
    settings = config.settings
    assert isinstance(settings, AveragingSettings)
    silos = num_participants(config.run.num_clients, settings.fraction_train, settings.min_train_nodes)
    needs, both = StreamNeeds.of(config, shapes, silos), 2 * silos * weights_bytes(config, shapes)
    return [
        f"                    in about {shards} shards each way, as they are above max-message-mb",
        f"disk of the silo    {human_bytes(needs.silo_disk)} in a round",
        f"memory of the server about {human_bytes(needs.server_memory)} in a round, of {silos} silos",
        f"disk of the server  up to {human_bytes(needs.server_disk)}, checkpoints among them",
        f"bytes of a round    {human_bytes(both)}, of all silos and both ways",
    ]


def stacked_shapes(config: RunConfig, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return by name the shapes of the adapters that silos are sent in the last round of ``lora-aggregation = stack``.

    Args:
        config: the run's.
        shapes: of a silo's own adapters.
    """
    settings = config.settings
    assert isinstance(settings, AveragingSettings)
    silos = num_participants(config.run.num_clients, settings.fraction_train, settings.min_train_nodes)
    summed = config.model.lora_rank * max(1, silos * (settings.num_rounds - 1))
    found: dict[str, Shape] = {}
    for layer in (name.removesuffix(A) for name in shapes if name.endswith(A)):
        (outputs, _, *ones), (_, *inputs) = shapes[layer + B], shapes[layer + A]
        rank = min(summed, most_rank((outputs, *inputs))) if settings.num_rounds > 1 else summed
        found |= {layer + A: (rank, *inputs), layer + B: (outputs, rank, *ones)}
    return found


def comparison(policy: SiloPolicy, plan: Plan) -> tuple[list[str], bool]:
    """Return what a policy makes of a plan, line by line, and whether the run can work."""
    found = refusals(policy, plan)
    lines = [f"{'without' if refusal.optional else 'REFUSED'}  {refusal}" for refusal in found]
    allowed = all(refusal.optional for refusal in found)
    return [*lines, "this policy allows the run" if allowed else "this policy forbids the run"], allowed
