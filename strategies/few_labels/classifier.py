"""The classifier of a run from few labels at the server: its first weights, its averages, its right answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsynth.data import LabelledImages
from fedsynth.errors import RunError
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, initial_classifier, predict_labels
from fedsynth.messages import TrainAnswer, transport
from fedsynth.seeding import derive_seed
from fedsynth.spec import ImageSpec
from strategies.averaging.aggregation import check_combined, weighted_mean
from strategies.averaging.updates import Update, mean_metrics


def first_weights(seed: int, spec: ImageSpec) -> ArrayRecord:
    """Return what every classifier of a run starts from, by the run's seed."""
    return transport.encode_tensors(_network(spec, derive_seed(seed, "classifier")).state_dict())


def average(
    server_round: int, answers: Iterator[tuple[int, TrainAnswer]], sent: ArrayRecord, names: Sequence[str]
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Return the mean of the silos' classifiers, which weigh by the images that they train on; None of no answers.

    Args:
        server_round: of the run, for an error.
        answers: with the silo's index, in any order.
        sent: the weights that the silos started from, whose data types the mean has.
        names: of the silos.

    Raises:
        RunError: the mean is not finite or absurd.
    """
    updates = sorted(
        (Update(k, names[k], one.arrays, one.num_examples, one.loss, one.seconds) for k, one in answers),
        key=lambda update: update.silo,
    )
    if not updates:
        return None, None
    metrics = mean_metrics(updates)
    metrics["client-seconds"] = sum(update.seconds for update in updates)
    arrays = weighted_mean([update.record for update in updates], [update.num_examples for update in updates])
    for name, array in sent.items():
        if arrays[name].dtype != array.dtype:
            arrays[name] = transport.encode(transport.peek(arrays[name]), array.dtype)
    try:
        check_combined(arrays)
    except ValueError as error:
        raise RunError(
            f"round {server_round}: the combined classifier is none any more: {error}; nothing of this round was"
            " saved. Lower classifier-learning-rate"
        ) from error
    return arrays, metrics


def right_answers(weights: Mapping[str, torch.Tensor], spec: ImageSpec, test: LabelledImages) -> float:
    """Return the share of test images whose class the classifier says, 0 to 1."""
    model = _network(spec, 0).eval()
    model.load_state_dict(weights)
    return float((predict_labels(model, test.images) == test.labels).mean())


def _network(spec: ImageSpec, seed: int) -> DomainClassifier:
    return initial_classifier(spec.channels, spec.size, len(spec.classes), seed)
