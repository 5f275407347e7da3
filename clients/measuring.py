"""What a silo says about its real images at the end of a run: never the images, never one image's features."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from clients.context import SiloContext
from fedsynth.errors import UserError
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.networks.extractor import Extractor
from fedsynth.evaluation.networks.random_features import trusted_extractor
from fedsynth.evaluation.silo_measures import MIN_HELD_OUT, Balls, HeldOutMeasures, load_classifier, measure_held_out
from fedsynth.messages import EvaluateAnswer, EvaluateRequest, StatisticsAnswer, StatisticsRequest, transport


def statistics(request: StatisticsRequest, silo: SiloContext) -> StatisticsAnswer:
    """Return moments of the features of all real images, in a network that the silo has itself.

    A real silo tells those of a data set once, with the noise of its policy, and repeats them to whoever asks.

    Raises:
        UserError: a private run; a network or a number of images that the policy does not allow; or another image size
            than before.
    """
    _refuse_in_private_run(silo)
    extractor = _trusted(request.extractor, silo)

    def measure() -> FeatureStatistics:
        images = silo.images(request.spec)
        parts = [part.images for part in (images.train, images.holdout) if len(part)]
        return FeatureStatistics.of(np.concatenate([extractor.extract(part).features for part in parts]))

    if silo.simulated:
        moments = measure()
    else:
        with silo.explained_state():
            moments = silo.released(request.spec).moments(extractor.name, request.spec, measure)
    return StatisticsAnswer(
        num_examples=moments.n,
        extractor=extractor.name,
        mean=torch.from_numpy(moments.mean),
        products=torch.from_numpy(moments.products),
        noise=moments.noise,
    )


def evaluate(request: EvaluateRequest, silo: SiloContext) -> EvaluateAnswer:
    """Return how classifier and manifold of the synthetic set do on the silo's held-out images.

    A real silo adds the noise of its policy to every count.

    Raises:
        UserError: a private run, a network that the policy does not allow, fewer than ``MIN_HELD_OUT`` held-out images,
            or a second question of one run.
    """
    _refuse_in_private_run(silo)
    extractor, spec = _trusted(request.extractor, silo), request.spec
    classifier = load_classifier(transport.decode_tensors(request.weights), spec, request.weights_hash)
    manifold = Balls(request.centres.numpy(), request.radii.numpy())
    held_out = silo.images(spec).holdout
    with silo.explained_state():
        told = silo.told_held_out(spec)
    # By the number that is told: the server chooses the fraction, and would find the exact one by where it is refused.
    if (len(held_out) if told is None else told) < MIN_HELD_OUT:
        raise UserError(f"holdout-fraction: fewer than {MIN_HELD_OUT} images are held out here: raise it")

    def measure() -> HeldOutMeasures:
        if not len(held_out):
            return HeldOutMeasures(0, 0, 0, 0)
        return measure_held_out(classifier, extractor, held_out.images, held_out.labels, manifold)

    if silo.simulated:
        found = measure()
    else:
        with silo.explained_state():
            found = silo.released(spec).held_out(silo.run_and_node[0], _question(request, silo), measure)
    return EvaluateAnswer(
        num_examples=found.n,
        weights_hash=request.weights_hash,
        right_inside=found.right_inside,
        right_outside=found.right_outside,
        wrong_inside=found.wrong_inside,
        wrong_outside=found.wrong_outside,
    )


def _refuse_in_private_run(silo: SiloContext) -> None:
    # The run's own configuration has no evaluate-silos then: a server that asks all the same is not of this project.
    if silo.config.private:
        raise UserError(
            f"dp-epsilon = {silo.config.privacy.dp_epsilon}: measures of real images are outside of it, and not told in"
            " such a run; ask in a run without dp-epsilon, where the silo's policy and privacy account decide"
        )


def _trusted(name: str, silo: SiloContext) -> Extractor:
    if name not in silo.policy.extractors:
        silo.policy.refuse("extractors", f"features of '{name}' are asked for")
    return trusted_extractor(name)


def _question(request: EvaluateRequest, silo: SiloContext) -> str:
    """Return a hash of what decides the exact counts: the same question gets the same answer."""
    data, spec = silo.config.data, request.spec
    split = [silo.config.run.seed, data.holdout_fraction, *([silo.group_column] if silo.group_column else [])]
    reading = [spec.channels, spec.size, spec.classes, data.skip_bad_images, data.value_range, data.first_page_only]
    content = hashlib.sha256(json.dumps([request.weights_hash, request.extractor, split, reading]).encode())
    content.update(np.ascontiguousarray(request.centres.numpy()).data)
    content.update(np.ascontiguousarray(request.radii.numpy()).data)
    return content.hexdigest()
