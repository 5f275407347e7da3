"""The card of a model that leaves a run: what a stranger must know before drawing from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from fedsynth.output.dataset_card import UNKNOWN, citing_section, inline, limits_of, making_section, privacy_section

_READING = """```python
import fedsynth
from huggingface_hub import snapshot_download

pipeline = fedsynth.from_pretrained(snapshot_download("{repo_id}"))
pipeline(["{name}"]).images
```

diffusers alone opens the parts, such as `UNet2DModel.from_pretrained("{repo_id}", subfolder="unet")`."""


def model_card(classes: Sequence[str], provenance: Mapping[str, Any], repo_id: str) -> str:
    """Write the card as Markdown with the YAML header of the Hugging Face hub.

    Args:
        classes: Class names, (C,).
        provenance: See :class:`fedsynth.output.SyntheticDataset`; of the set that the run made.
        repo_id: Where the model will be, ``name/model``.
    """
    data = ModelCardData(
        license=str(provenance.get("license", UNKNOWN)),
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["synthetic", "federated-learning", "diffusion"],
    )
    limits = limits_of(provenance.get("privacy", {}).get("statement", ()))
    named = ", ".join(inline(name) for name in classes)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# Class-conditional diffusion model",
        f"Draws synthetic images of {len(classes)} classes: {named}.",
        "## How it was made",
        making_section(provenance),
        "## Privacy",
        privacy_section(provenance),
        "A model says more of the images that it was trained on than what is drawn from it.",
        "## Limits",
        "\n".join(f"- {inline(sentence)}" for sentence in (*limits, *provenance.get("caveats", ()))),
        "## Using it",
        _READING.format(repo_id=repo_id, name=classes[0].replace("\\", "").replace('"', "")),
        "## Citing",
        citing_section(provenance),
    ]
    return "\n\n".join(sections) + "\n"
