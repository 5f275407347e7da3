"""A classifier that leaves a run: its weights as safetensors, and a card that says how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from safetensors.torch import save_file

from fedsynth.files import atomic_directory
from fedsynth.output.dataset_card import UNKNOWN, citing_section, inline, making_section
from fedsynth.spec import ImageSpec
from fedsynth.units import show

WEIGHTS = "model.safetensors"
_ACCURACY = "classifier-accuracy-synthetic"
_READING = """```python
from safetensors.torch import load_file
from fedsynth.evaluation import DomainClassifier, predict_labels
classifier = DomainClassifier(channels={channels}, image_size={size}, num_classes={classes}).eval()
classifier.load_state_dict(load_file("{weights}"))
labels = predict_labels(classifier, images)  # images: uint8 (N, {size}, {size}, {channels})
```"""


def write_classifier(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    spec: ImageSpec,
    provenance: Mapping[str, Any],
    measures: Mapping[str, Any],
) -> None:
    """Write the folder of a classifier: ``model.safetensors`` and ``README.md``; all of it or nothing.

    Args:
        path: Folder to make.
        weights: Of a :class:`~fedsynth.evaluation.DomainClassifier`.
        spec: Format and classes of its images.
        provenance: See :class:`fedsynth.output.SyntheticDataset`; of the set that the run made.
        measures: What the run measured of it.
    """
    with atomic_directory(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        card = classifier_card(spec, provenance, measures)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def classifier_card(spec: ImageSpec, provenance: Mapping[str, Any], measures: Mapping[str, Any]) -> str:
    """Write the card as Markdown with the YAML header of the Hugging Face hub; arguments as of
    :func:`write_classifier`.
    """
    data = ModelCardData(
        license=str(provenance.get("license", UNKNOWN)),
        pipeline_tag="image-classification",
        tags=["federated-learning", "few-labels"],
    )
    named = ", ".join(f"{number} {inline(name)}" for number, name in enumerate(spec.classes))
    accuracy = measures.get(_ACCURACY)
    reached = "" if accuracy is None else f" It knows {show(accuracy)} of the run's real test images."
    limits = (
        "No promise of privacy is made of these weights: they were trained on real images.",
        "It learnt from few labels, and from images that a model of those labels drew: a class of few labels may be"
        " badly known.",
        *provenance.get("caveats", ()),
    )
    reading = _READING.format(channels=spec.channels, size=spec.size, classes=len(spec.classes), weights=WEIGHTS)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# Classifier",
        f"Says of {spec.size} x {spec.size} images which of {len(spec.classes)} classes they are: {named}.{reached}",
        "## Using it",
        reading,
        "## How it was made",
        making_section(provenance),
        "## Limits",
        "\n".join(f"- {inline(sentence)}" for sentence in limits),
        "## Citing",
        citing_section(provenance),
    ]
    return "\n\n".join(sections) + "\n"
