"""What a silo says about its real images at the end of a run: never the images, never one image's features."""

from __future__ import annotations

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecordValues

from clients.context import identity
from clients.handlers import silo_of
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, load_classifier, measure_held_out, real_statistics
from fedsynth.messages import wire

CLASSIFIER = "domain-classifier"


def handle_statistics(message: Message, context: Context) -> Message:
    """``query.statistics``: count and sums of the features of all real images, in the received classifier.

    A silo with fewer images than ``min-statistics-samples`` answers its count alone. The classifier stays in the
    context for ``evaluate``.
    """
    start = time.monotonic()
    request = wire.config(message)
    silo = silo_of(context, RunConfig.from_run_config(context.run_config), wire.spec_from_config(request))
    context.state[CLASSIFIER] = wire.array_record(message, wire.WEIGHTS)
    classifier = _classifier(context, request)
    count = len(silo.train) + len(silo.holdout)
    if count < wire.number(request, "min-statistics-samples"):
        return _answer(message, context, {"num-examples": count})
    shift = wire.decode(wire.array_record(message, wire.ARRAYS)[wire.SHIFT]).numpy()
    statistics = real_statistics(classifier, (silo.train.images, silo.holdout.images), shift)
    sums = {wire.TOTAL: statistics.total, wire.PRODUCTS: statistics.products}
    record = wire.encode_tensors({name: torch.from_numpy(values) for name, values in sums.items()})
    metrics: dict[str, MetricRecordValues] = {"num-examples": statistics.n, "seconds": time.monotonic() - start}
    return _answer(message, context, metrics, arrays=record)


def handle_evaluate(message: Message, context: Context) -> Message:
    """``evaluate``: how the classifier and the features of the synthetic set do on the silo's held-out images.

    A silo with fewer than ``MIN_HELD_OUT`` of them answers its count alone.
    """
    start = time.monotonic()
    request = wire.config(message)
    spec = wire.spec_from_config(request)
    classifier = _classifier(context, request)
    silo = silo_of(context, RunConfig.from_run_config(context.run_config), spec)
    if len(silo.holdout) < MIN_HELD_OUT:
        return _answer(message, context, {"num-examples": len(silo.holdout)})
    synthetic = wire.decode(wire.array_record(message, wire.ARRAYS)[wire.FEATURES]).numpy()
    held_out, classes = silo.holdout, len(spec.classes)
    measures = measure_held_out(classifier, held_out.images, held_out.labels, silo.train.images, synthetic, classes)
    metrics: dict[str, MetricRecordValues] = {
        "num-examples": measures.n,
        "label-counts": list(measures.label_counts),
        "label-correct": list(measures.label_correct),
        "coverage": measures.coverage,
        "seconds": time.monotonic() - start,
    }
    return _answer(message, context, metrics)


def _classifier(context: Context, request: ConfigRecord) -> DomainClassifier:
    if CLASSIFIER not in context.state:
        raise UserError("this silo has no classifier of the synthetic set yet: 'query.statistics' must come first")
    weights = wire.decode_tensors(context.state.array_records[CLASSIFIER])
    return load_classifier(weights, wire.spec_from_config(request), str(request["weights-hash"]))


def _answer(
    message: Message, context: Context, metrics: dict[str, MetricRecordValues], **arrays: ArrayRecord
) -> Message:
    """Answer, and say with which classifier."""
    answer = wire.answer(message, identity(context), metrics, **arrays)
    answer.content[wire.CONFIG] = ConfigRecord({"weights-hash": wire.config(message)["weights-hash"]})
    return answer
