"""What a silo does where labels are few: confusions, pseudo-labels, images that it lacks, and a classifier of them.

Which images are pseudo-labelled, and the images that the silo draws for itself or is given, stay in its state folder
under the run's token, from one round to the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import ConfigRecord
from safetensors.torch import save_file

from clients.context import SiloContext
from clients.models.federated_model import FederatedModel
from clients.models.pretrained_model import brings_model
from clients.noisy_counts import MIN_SCALES, Counts, add_geometric_noise, noisy_label_counts
from clients.told_counts import told_counts
from fedsynth.config.methods import DDSASettings
from fedsynth.data import LabelledImages, Silo, holdout_rows
from fedsynth.data.labelled_images import stratified_split
from fedsynth.diffusion import codec_of, initial_unet, make_scheduler, noise_predictor, pick_device
from fedsynth.diffusion import sample as draw
from fedsynth.errors import UserError
from fedsynth.evaluation.networks.domain_classifier import DomainClassifier, classify, initial_classifier
from fedsynth.few_labels.classifier import Slice, train_classifier
from fedsynth.few_labels.selection import confusion, select
from fedsynth.files import atomic_file
from fedsynth.messages import (
    ConfusionAnswer,
    ConfusionRequest,
    PrepareRequest,
    SelectAnswer,
    SelectRequest,
    SynthesiseAnswer,
    SynthesiseRequest,
    TrainAnswer,
    TrainRequest,
    transport,
)
from fedsynth.messages.transport import Arrays
from fedsynth.sealed import Seal, SealError
from fedsynth.sealed_tensors import read_tensors, tensor_metadata
from fedsynth.seeding import derive_seed, make_generator
from fedsynth.spec import ImageSpec

DRAWN_AT_ONCE = 256
KEPT, DRAWN = "pseudo labels", "synthesised images"
PSEUDO_LABELS = "pseudo-labels"
"""Name of the note on those that the own model was trained on."""


@dataclass(frozen=True)
class OwnImages:
    """What a silo trains on.

    Attributes:
        labelled: images with labels, whoever gave them.
        unlabelled: images without, for a loss that needs none; None: there is no such loss.
    """

    labelled: LabelledImages
    unlabelled: LabelledImages | None = None


def count_confusions(request: ConfusionRequest, silo: SiloContext) -> ConfusionAnswer:
    """Count how the classifier does on labelled images that it never saw, with noise in every cell.

    The noise is the run's, at a real silo the larger one of the run's and its policy's.
    """
    settings = _settings(silo)
    classes = len(request.spec.classes)

    def measure() -> Counts:
        _, unseen = _split_labelled(silo, request.spec)
        if not len(unseen):
            return np.zeros(classes * classes * request.bins, np.int64)
        probabilities = _probabilities(request.weights, request.spec, unseen, silo)
        return confusion(probabilities, torch.from_numpy(unseen.labels), request.bins).numpy().ravel()

    if silo.simulated:
        rng = np.random.default_rng(derive_seed(silo.config.run.seed, "confusion-noise", silo.name))
        noisy = add_geometric_noise(measure(), settings.confusion_noise, rng)
    else:
        noisy = _told_once(request, silo, settings.confusion_noise, measure)
    return ConfusionAnswer(matrix=torch.from_numpy(noisy).view(classes, classes, request.bins))


def select_pseudo_labels(request: SelectRequest, silo: SiloContext) -> SelectAnswer:
    """Keep what the classifier says of unlabelled images where it is confident enough, and tell how many there are."""
    _settings(silo)
    classes, unlabelled = len(request.spec.classes), _unlabelled(silo, request.spec)
    rows = predicted = np.empty(0, np.int64)
    if len(unlabelled):
        probabilities = _probabilities(request.weights, request.spec, unlabelled, silo)
        rows, predicted = (found.numpy() for found in select(probabilities, request.thresholds))
    labels = predicted[rows]
    counts = [np.bincount(found, minlength=classes) for found in (predicted, labels)]
    if silo.simulated:
        counts.append(np.bincount(labels[labels == unlabelled.labels[rows]], minlength=classes))
        rng = np.random.default_rng(derive_seed(silo.config.run.seed, "pseudo-label-count-noise", silo.name))
        told = [_told(numbers, silo, rng) for numbers in counts]
    else:
        # Each image is in one of the two, so that it changes one number.
        both = np.concatenate([counts[1], counts[0] - counts[1]])
        noisy = _told_once(request, silo, 0.0, lambda: both)
        noisy = np.where(noisy >= MIN_SCALES * silo.policy.count_noise, noisy, 0)
        told = [noisy[:classes] + noisy[classes:], noisy[:classes]]
    kept = {"rows": rows, "labels": labels, "told": told[1]}
    _keep(KEPT, {name: torch.from_numpy(found) for name, found in kept.items()}, request.run_token, silo)
    said = [tuple(numbers.tolist()) for numbers in told]
    correct = said[2] if silo.simulated else None
    return SelectAnswer(predicted=said[0], kept=said[1], correct=correct, num_examples=sum(said[0]))


def synthesise(request: SynthesiseRequest, silo: SiloContext) -> SynthesiseAnswer:
    """Draw images from the federated model, or take those that others drew, and keep them for the silo's own training.

    Raises:
        UserError: a model that draws nothing, or images of a class that the silo lacks no images of.
    """
    labels = torch.repeat_interleave(torch.arange(len(request.quota)), torch.tensor(request.quota))
    if request.images is not None:
        _refuse_what_nobody_lacks(request, silo)
        images = request.images
    else:
        images = _drawn_images(request, labels, silo)
    _keep(DRAWN, {"images": images, "labels": labels}, request.run_token, silo)
    return SynthesiseAnswer(made=request.quota, num_examples=len(labels))


def _refuse_what_nobody_lacks(request: SynthesiseRequest, silo: SiloContext) -> None:
    settings, counts = _settings(silo), told_counts(silo, request.spec)
    if not settings.own_models:
        raise UserError("images that others drew: only with diffusion-strategy = 'dfd' or 'pooled'")
    if not counts.any():
        raise UserError("images for a silo that has no labels: it trains no classifier")
    # Of a class that too few hold, the server counts a silo's labels as absent.
    if settings.synthetic_quota == "missing" and silo.policy.least_holders == 1:
        for name, labelled, number in zip(request.spec.classes, counts, request.quota, strict=True):
            if labelled and number:
                raise UserError(
                    f"images of class '{name}', of which this silo has labels: synthetic-quota is 'missing'"
                )


def _drawn_images(request: SynthesiseRequest, labels: torch.Tensor, silo: SiloContext) -> torch.Tensor:
    if _settings(silo).own_models or request.weights is None:
        raise UserError("there is no federated model to draw from: diffusion-strategy must be a rule of averaging")
    config, spec = silo.config, request.spec
    codec = codec_of(config, spec)
    received = transport.decode_tensors(request.weights)
    unet = FederatedModel(initial_unet(config, spec), received, silo.state, None).before(1)
    predict = noise_predictor(unet.to(pick_device(config.run.device)), config.recipe, codec.bound)
    generator = make_generator(config.run.seed, "synthesis", silo.name)
    images = []
    for some in labels.split(DRAWN_AT_ONCE):
        noise = torch.randn((len(some), *codec.shape), generator=generator)
        scheduler = make_scheduler(config.recipe, config.sampling.sampling_steps, request.sampler, codec.bound)
        drawn = draw(predict, scheduler, noise, some, generator, on_step=lambda _: silo.check_deadline())
        if not bool(drawn.isfinite().all()):
            raise UserError("the federated model draws numbers that are not finite: its training has diverged")
        images.append(torch.from_numpy(codec.decode(drawn)))
    return torch.cat(images)


def train_federated_classifier(request: TrainRequest, silo: SiloContext) -> TrainAnswer:
    """Continue from the received classifier on the images that are asked for, with a fresh optimiser."""
    settings, config = _settings(silo), silo.config
    own = training_images(request, silo)
    model = _classifier(request.arrays, request.spec, silo)
    piece = Slice(
        steps=request.steps,
        first_step=request.first_step,
        all_steps=settings.classifier_steps,
        learning_rate=settings.classifier_learning_rate,
        batch_size=config.training.batch_size,
        augment=config.training.augmentations(),
        seed=derive_seed(config.run.seed, "classifier-training", str(request.images), silo.name, request.server_round),
    )
    losses = train_classifier(
        model,
        own.labelled.images,
        own.labelled.labels,
        piece,
        own.unlabelled.images if own.unlabelled else None,
        on_step=silo.check_deadline,
    )
    return TrainAnswer(
        arrays=transport.encode_tensors(model.state_dict(), config.exchange.wire_dtype),
        num_examples=number_told(request, silo),
        loss=sum(losses) / len(losses) if losses and silo.policy.tell_train_loss else None,
    )


def own_model_images(request: PrepareRequest, silo: SiloContext) -> Silo:
    """Return the images of a silo as its own diffusion model sees them.

    Raises:
        UserError: as :func:`training_images`, or the silo brings a model that nobody here trains.
    """
    images = silo.images(request.spec)
    if request.images is None:
        return images
    if brings_model(silo):
        raise UserError(
            "model-path: where labels are few, a silo's own model is trained on the run's pseudo-labels; start the silo"
            " without it"
        )
    own = training_images(request, silo).labelled
    if request.images == "pseudo":
        told = _kept(KEPT, request.run_token, silo)["told"].tolist()
        silo.note(PSEUDO_LABELS, ConfigRecord({"told": told}))
    return replace(images, train=own, unlabelled=None)


def told_pseudo_labels(silo: SiloContext) -> Counts | None:
    """Return how many pseudo-labelled images of every class its own model was trained on, as the silo told them.

    None: it was trained on labelled images alone, or there is none.
    """
    noted = silo.noted(PSEUDO_LABELS)
    return None if noted is None else np.array(noted["told"], np.int64)


def training_images(request: TrainRequest | PrepareRequest, silo: SiloContext) -> OwnImages:
    """Return what a round asks a silo to train on.

    Raises:
        UserError: there are no such images, or what the silo kept of an earlier round is gone.
    """
    own = _images_for(request, silo)
    if not len(own.labelled):
        raise UserError(f"this silo has no images to train on ('{request.images}')")
    return own


def _images_for(request: TrainRequest | PrepareRequest, silo: SiloContext) -> OwnImages:
    _settings(silo)
    images = silo.images(request.spec)
    match request.images:
        case "first":
            return OwnImages(_split_labelled(silo, request.spec)[0])
        case "pseudo":
            kept = _kept(KEPT, request.run_token, silo)
            rows = kept["rows"].numpy()
            unlabelled = _unlabelled(silo, request.spec).images[rows]
            return OwnImages(_joined(images.train, unlabelled, kept["labels"]))
        case "synthetic":
            drawn = _kept(DRAWN, request.run_token, silo)
            return OwnImages(_joined(images.train, drawn["images"].numpy(), drawn["labels"]))
        case "fixmatch":
            unlabelled = _unlabelled(silo, request.spec)
            return OwnImages(images.train, unlabelled if len(unlabelled) else None)
        case "all":
            if not silo.simulated:
                raise UserError("compare-classifiers = 'all': nobody knows the labels of unlabelled images here")
            true = _unlabelled(silo, request.spec)
            return OwnImages(_joined(images.train, true.images, torch.from_numpy(true.labels)))
    return OwnImages(images.train)


def number_told(request: TrainRequest, silo: SiloContext) -> int:
    """Return how many images a silo says that it trains on in a round; errors as of :func:`training_images`.

    A real silo computes it from what it has told before: no other message tells another number.
    """
    if silo.simulated:
        return _told_number(training_images(request, silo).labelled, silo)
    return max(1, number_of(request, int(told_counts(silo, request.spec).sum()), silo))


def number_of(request: TrainRequest | PrepareRequest, labelled: int, silo: SiloContext) -> int:
    """Return how many images a round trains on, by the numbers that a silo tells.

    Args:
        request: of the round.
        labelled: images with labels, as they are told.
        silo: who is asked.

    Raises:
        UserError: another strategy, or what the silo kept of an earlier round is gone.
    """
    settings = _settings(silo)
    match request.images:
        case "first" if settings.pseudo_selection == "precision":
            return round(labelled * (1 - settings.pseudo_holdout))
        case "pseudo":
            return labelled + int(_kept(KEPT, request.run_token, silo)["told"].sum())
        case "synthetic":
            return labelled + len(_kept(DRAWN, request.run_token, silo)["labels"])
    return labelled


def _settings(silo: SiloContext) -> DDSASettings:
    """Return the run's settings.

    Raises:
        UserError: another strategy.
    """
    settings = silo.config.settings
    if not isinstance(settings, DDSASettings):
        raise UserError(f"strategy = '{silo.config.run.strategy}' has no silo classify its images")
    return settings


def _split_labelled(silo: SiloContext, spec: ImageSpec) -> tuple[LabelledImages, LabelledImages]:
    """Return the labelled images that the first classifier learns from, and those its confusions are counted on."""
    settings, images = _settings(silo), silo.images(spec).train
    if settings.pseudo_selection != "precision":
        return images, images.subset([])
    if not silo.simulated:
        # One image more or less moves no other, so that it changes one cell of the confusion matrix.
        seed = derive_seed(silo.config.run.seed, "pseudo-holdout")
        learnt, unseen = holdout_rows(images, np.arange(len(images)), settings.pseudo_holdout, seed, each_alone=True)
        return images.subset(learnt), images.subset(unseen)
    rng = np.random.default_rng(derive_seed(silo.config.run.seed, "pseudo-holdout", silo.name))
    learnt, unseen = stratified_split(images.labels, settings.pseudo_holdout, rng, images.groups)
    return images.subset(learnt), images.subset(unseen)


def _unlabelled(silo: SiloContext, spec: ImageSpec) -> LabelledImages:
    images = silo.images(spec)
    return images.train.subset([]) if images.unlabelled is None else images.unlabelled


def _joined(labelled: LabelledImages, images: np.ndarray, labels: torch.Tensor) -> LabelledImages:
    both = np.concatenate([labelled.images, images]), np.concatenate([labelled.labels, labels.numpy()])
    return LabelledImages(*both, labelled.classes)


def _classifier(weights: Arrays, spec: ImageSpec, silo: SiloContext) -> DomainClassifier:
    """Return the run's classifier with the weights received.

    Raises:
        UserError: they are not of it.
    """
    model = initial_classifier(spec.channels, spec.size, len(spec.classes), 0)
    received = transport.decode_tensors(weights)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in received.items()} != expected:
        raise UserError("weights do not fit the classifier: give server and silos the same fedsynth")
    model.load_state_dict(received)
    return model.eval().to(pick_device(silo.config.run.device))


def _probabilities(weights: Arrays, spec: ImageSpec, images: LabelledImages, silo: SiloContext) -> torch.Tensor:
    return classify(_classifier(weights, spec, silo), images.images)[0].double().softmax(1)


def _told_once(
    request: ConfusionRequest | SelectRequest, silo: SiloContext, scale: float, measure: Callable[[], Counts]
) -> Counts:
    """Return what a real silo tells of what a classifier says: drawn once for a question, and one answer a run."""
    noise = max(scale, silo.policy.count_noise)
    with silo.explained_state():
        released = silo.released(request.spec)
        kind = request.kind.removeprefix("query.")
        return released.classified(kind, silo.run_and_node[0], _question(request, silo), noise, measure)


def _question(request: ConfusionRequest | SelectRequest, silo: SiloContext) -> str:
    """Return a hash of what decides the exact numbers besides the labelled images."""
    data, spec, settings = silo.config.data, request.spec, _settings(silo)
    split = [silo.config.run.seed, data.holdout_fraction, settings.pseudo_holdout, silo.group_column]
    reading = [spec.channels, spec.size, spec.classes, data.skip_bad_images, data.value_range, data.first_page_only]
    asked = request.bins if isinstance(request, ConfusionRequest) else request.thresholds.tolist()
    content = hashlib.sha256(json.dumps([asked, split, reading, silo.image_files(spec).unlabelled_key]).encode())
    for name, tensor in sorted(transport.decode_tensors(request.weights).items()):
        content.update(name.encode())
        content.update(np.ascontiguousarray(tensor.numpy()).data)
    return content.hexdigest()


def _told(counts: Counts, silo: SiloContext, rng: np.random.Generator) -> Counts:
    return noisy_label_counts(counts, silo.config.simulated_count_noise, rng)


def _told_number(images: LabelledImages, silo: SiloContext) -> int:
    """Return how many images a silo says that it trains on: one at least, since it answers."""
    rng = np.random.default_rng(derive_seed(silo.config.run.seed, "training-count-noise", silo.name, len(images)))
    return max(1, int(_told(images.label_counts(), silo, rng).sum()))


def _keep(what: str, tensors: Mapping[str, torch.Tensor], run_token: str, silo: SiloContext) -> None:
    path = silo.state / "few-labels" / run_token / f"{what.replace(' ', '-')}.safetensors"
    with silo.explained_state(), atomic_file(path) as temporary:
        save_file(dict(tensors), temporary, tensor_metadata(tensors, _seal(what, run_token, silo)))


def _kept(what: str, run_token: str | None, silo: SiloContext) -> dict[str, torch.Tensor]:
    path = silo.state / "few-labels" / str(run_token) / f"{what.replace(' ', '-')}.safetensors"
    try:
        return read_tensors(path, _seal(what, str(run_token), silo))
    except (OSError, SealError) as error:
        raise UserError(
            f"the {what} that this silo kept in this run cannot be read ({error}): give it the state folder of the"
            " earlier rounds (state-dir), or start a new run"
        ) from error


def _seal(what: str, run_token: str, silo: SiloContext) -> Seal:
    return Seal(what, 1, f"{silo.name}, run {run_token}")
