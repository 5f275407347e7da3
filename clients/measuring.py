"""What a silo says about its real images at the end of a run: never the images, never one image's features."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord

from clients.context import SiloContext
from fedsynth.errors import UserError
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, load_classifier, measure_held_out, real_statistics
from fedsynth.messages import EvaluateAnswer, EvaluateRequest, StatisticsAnswer, StatisticsRequest, transport
from fedsynth.spec import ImageSpec

CLASSIFIER = "domain-classifier"


def statistics(request: StatisticsRequest, silo: SiloContext) -> StatisticsAnswer:
    """Return count and sums of the features of all real images, in the received classifier.

    A silo with fewer images than ``min_statistics_samples`` answers its count alone. The classifier stays in the
    context for :func:`evaluate`.
    """
    images = silo.images(request.spec)
    silo.note(CLASSIFIER, request.weights)
    classifier = _classifier(silo, request.spec, request.weights_hash)
    count = len(images.train) + len(images.holdout)
    if count < request.min_statistics_samples:
        return StatisticsAnswer(num_examples=count, weights_hash=request.weights_hash)
    sums = real_statistics(classifier, (images.train.images, images.holdout.images), request.shift.numpy())
    return StatisticsAnswer(
        num_examples=sums.n,
        weights_hash=request.weights_hash,
        total=torch.from_numpy(sums.total),
        products=torch.from_numpy(sums.products),
    )


def evaluate(request: EvaluateRequest, silo: SiloContext) -> EvaluateAnswer:
    """Return how the classifier and the features of the synthetic set do on the silo's held-out images.

    A silo with fewer than ``MIN_HELD_OUT`` of them answers its count alone.
    """
    classifier = _classifier(silo, request.spec, request.weights_hash)
    images = silo.images(request.spec)
    if len(images.holdout) < MIN_HELD_OUT:
        return EvaluateAnswer(num_examples=len(images.holdout), weights_hash=request.weights_hash)
    measures = measure_held_out(
        classifier,
        images.holdout.images,
        images.holdout.labels,
        images.train.images,
        request.features.numpy(),
        len(request.spec.classes),
    )
    return EvaluateAnswer(
        num_examples=measures.n,
        weights_hash=request.weights_hash,
        label_counts=tuple(measures.label_counts),
        label_correct=tuple(measures.label_correct),
        coverage=measures.coverage,
    )


def _classifier(silo: SiloContext, spec: ImageSpec, weights_hash: str) -> DomainClassifier:
    weights = silo.noted(CLASSIFIER)
    if not isinstance(weights, ArrayRecord):
        raise UserError("this silo has no classifier of the synthetic set yet: 'query.statistics' must come first")
    return load_classifier(transport.decode_tensors(weights), spec, weights_hash)
