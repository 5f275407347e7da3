"""A cache on disk of features, feature classifiers and scores on real images: a set of images is processed once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from safetensors.torch import save

from fedsynth.evaluation.networks.domain_classifier import (
    ARCHITECTURE,
    BATCH_SIZE,
    LEARNING_RATE,
    TRAINING_STEPS,
    DomainClassifier,
    train_domain_classifier,
)
from fedsynth.evaluation.networks.extractor import Extracted, Extractor, digest
from fedsynth.evaluation.networks.resnet import load_weights
from fedsynth.evaluation.utility import RESNET, Images, Labels, Scores, budgets, utility_scores
from fedsynth.files import atomic_file
from fedsynth.sealed import Seal, SealError, sealed_bytes, unsealed_bytes
from fedsynth.sealed_tensors import read_tensors, tensor_metadata

logger = logging.getLogger("fedsynth")


def extract_cached(extractor: Extractor, images: npt.NDArray[np.uint8], folder: Path | None) -> Extracted:
    """Return what :meth:`Extractor.extract` does, from ``folder`` if it was computed before.

    A file is ``<folder>/<extractor>-<its hash>/<hash of the images>.npy``: float32 (N, D + classes), the features and
    then the logits of an extractor that has any. A seal follows the array (``numpy.load`` ignores it); a damaged
    file is computed again. Several processes may share the folder; where it cannot be written, a warning says so.

    Args:
        extractor: computes what is not there.
        images: uint8 (N, H, W, C); their order counts.
        folder: None: nothing is kept.

    Raises:
        UserError: as :meth:`Extractor.extract` does.
    """
    if folder is None:
        return extractor.extract(images)
    path = folder / f"{extractor.name}-{extractor.content_hash[:16]}" / f"{_content_hash(images)}.npy"
    kept = _read(path, len(images), extractor.dimension)
    if kept is None:
        kept = extractor.extract(images)
        columns = [kept.features, *([] if kept.logits is None else [kept.logits])]
        content = io.BytesIO()
        np.save(content, np.concatenate(columns, axis=1), allow_pickle=False)
        _keep(folder, path, sealed_bytes(content.getvalue(), _seal(path)))
    return kept


def classifier_cached(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    num_classes: int,
    seed: int,
    folder: Path | None,
) -> DomainClassifier:
    """Return what :func:`train_domain_classifier` does, from ``folder`` if it was trained before.

    A file is ``<folder>/classifiers/<hash of all arguments and budgets>.safetensors``; a damaged one is made again, and
    where none can be written, a warning says so.
    """
    if folder is None:
        return train_domain_classifier(images, labels, num_classes, seed)
    budget = (ARCHITECTURE, TRAINING_STEPS, BATCH_SIZE, LEARNING_RATE)
    arguments = (num_classes, seed, *budget, torch.__version__, _content_hash(images))
    name = hashlib.sha256(f"{arguments} {_content_hash(labels.astype(np.int64))}".encode()).hexdigest()
    path = folder / "classifiers" / f"{name}.safetensors"
    # On the meta device nothing is initialised, and the global random state stays as it was.
    with torch.device("meta"):
        empty = DomainClassifier(images.shape[3], min(images.shape[1:3]), num_classes)
    model = _read_classifier(path, empty)
    if model is None:
        model = train_domain_classifier(images, labels, num_classes, seed)
        weights = model.state_dict()
        _keep(folder, path, save(weights, tensor_metadata(weights, _seal(path))))
    return model


def scores_cached(
    folder: Path | None,
    train_images: Images,
    train_labels: Labels,
    test_images: Images,
    test_labels: Labels,
    num_classes: int,
    seed: int,
    classifiers: Sequence[str],
    num_seeds: int,
    resnet_weights: Path | None = None,
    device: str = "cpu",
) -> dict[str, Scores]:
    """Return what :func:`utility_scores` does of the same arguments, from ``folder`` if it was measured before.

    A file is ``<folder>/scores/<hash of all arguments and budgets>.json``, with a seal behind the object; a damaged one
    is made again, and where none can be written, a warning says so.
    """

    def measured() -> dict[str, Scores]:
        images = train_images, train_labels, test_images, test_labels
        return utility_scores(*images, num_classes, seed, classifiers, num_seeds, resnet_weights, device)

    if folder is None:
        return measured()
    hashes = [_content_hash(images) for images in (train_images, test_images)]
    hashes += [_content_hash(labels.astype(np.int64)) for labels in (train_labels, test_labels)]
    # Of the weights, the content and not the path.
    resnet = (device, digest(RESNET, weights=load_weights(resnet_weights))) if RESNET in classifiers else ()
    versions = torch.__version__, sklearn.__version__, [field.name for field in fields(Scores)]
    arguments = (num_classes, seed, tuple(classifiers), num_seeds, resnet, budgets(), versions, hashes)
    path = folder / "scores" / f"{hashlib.sha256(repr(arguments).encode()).hexdigest()}.json"
    kept = _read_scores(path)
    if kept is None:
        kept = measured()
        content = json.dumps({name: asdict(scores) for name, scores in kept.items()}).encode()
        _keep(folder, path, sealed_bytes(content, _seal(path)))
    return kept


def _read_scores(path: Path) -> dict[str, Scores] | None:
    """What the file holds; None unless it is there and whole."""
    try:
        content = json.loads(bytes(unsealed_bytes(path.read_bytes(), _seal(path))))
    except (OSError, SealError):
        return None
    scores = {}
    for name, columns in content.items():
        lists: dict[str, Any] = {key: tuple(value) for key, value in columns.items() if isinstance(value, list)}
        scores[name] = Scores(**{**columns, **lists})
    return scores


def _read_classifier(path: Path, model: DomainClassifier) -> DomainClassifier | None:
    """``model`` with the weights of the file; None unless it is there, whole and of this network."""
    try:
        weights = read_tensors(path, _seal(path))
        model.load_state_dict(weights, assign=True)
    except (SealError, OSError, RuntimeError):
        return None
    return model.eval() if all(tensor.isfinite().all() for tensor in weights.values()) else None


def _seal(path: Path) -> Seal:
    return Seal("cached measurement", 1, f"{path.parent.name}/{path.stem}")


def _content_hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _keep(folder: Path, path: Path, content: bytes) -> None:
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        # The result is at hand; only the next evaluation loses time.
        _say_once(f"nothing is kept in {folder} (state-dir): {error.strerror or error}; going on without")


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _read(path: Path, count: int, dimension: int) -> Extracted | None:
    """What the file holds; None unless it is there, whole and of ``count`` images."""
    try:
        array = unsealed_bytes(path.read_bytes(), _seal(path))
    except (OSError, SealError):
        return None
    columns = np.load(io.BytesIO(array), allow_pickle=False)
    if columns.ndim != 2 or len(columns) != count or columns.shape[1] < dimension:
        return None
    logits = np.ascontiguousarray(columns[:, dimension:])
    return Extracted(np.ascontiguousarray(columns[:, :dimension]), logits if logits.size else None)
