"""The card of a model that leaves a run: what a stranger must know before drawing from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from fedsynth.output.dataset_card import UNKNOWN, citing_section, inline, limits_of, making_section, privacy_section
from fedsynth.text import printable

_READING = """```python
import fedsynth
from huggingface_hub import snapshot_download

pipeline = fedsynth.from_pretrained(snapshot_download("{repo_id}"))
pipeline(["{name}"]).images
```

diffusers alone opens the parts, such as `UNet2DModel.from_pretrained("{repo_id}", subfolder="unet")`."""

_OF_A_BASE = """Put it into the base model's own pipeline, `{base}` being its folder or its name on a hub:

```python
from diffusers import StableDiffusionPipeline{imported}

{opened}
pipeline("{prompt}").images
```

Prompts as in training, of which `conditions.safetensors` holds the embeddings, are "{prompt}" and so on by class."""
_MERGED = """unet = UNet2DConditionModel.from_pretrained("{repo_id}", subfolder="unet")
pipeline = StableDiffusionPipeline.from_pretrained("{base}", unet=unet, safety_checker=None)"""
_ADAPTERS = """pipeline = StableDiffusionPipeline.from_pretrained("{base}", safety_checker=None)
pipeline.load_lora_weights("{repo_id}")"""


_LABELLED = """diffusers opens its parts; `DiTPipeline` has another number of classes built in:

```python
from diffusers import DiTTransformer2DModel

transformer = DiTTransformer2DModel.from_pretrained("{repo_id}", subfolder="transformer")
```

It works in the latents of the base model's autoencoder (`vae` of `{base}`). Classes are in the order above; one more
row stands for none."""


def model_card(
    classes: Sequence[str], provenance: Mapping[str, Any], repo_id: str, is_transformer: bool = False
) -> str:
    """Write the card as Markdown with the YAML header of the Hugging Face hub.

    Args:
        classes: Class names, (C,).
        provenance: See :class:`fedsynth.output.SyntheticDataset`; of the set that the run made.
        repo_id: Where the model will be, ``name/model``.
        is_transformer: Whether its network is a transformer with a table of classes.
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
        _reading(classes[0], provenance.get("settings", {}), repo_id, is_transformer),
        "## Citing",
        citing_section(provenance),
    ]
    return "\n\n".join(sections) + "\n"


def _reading(name: str, settings: Mapping[str, Any], repo_id: str, is_transformer: bool) -> str:
    """Return how a model is opened, by fedsynth or by the pipeline of its base model."""
    if "base-model" not in settings:
        return _READING.format(repo_id=repo_id, name=_plain(name))
    if is_transformer:
        return _LABELLED.format(repo_id=repo_id, base=_plain(str(settings["base-model"])))
    base, prompt = _plain(str(settings["base-model"])), _plain(str(settings.get("prompt", "")).replace("{class}", name))
    adapted = settings.get("train") == "lora"
    opened = (_ADAPTERS if adapted else _MERGED).format(repo_id=repo_id, base=base)
    return _OF_A_BASE.format(
        base=base, opened=opened, prompt=prompt, imported="" if adapted else ", UNet2DConditionModel"
    )


def _plain(text: str) -> str:
    """Return a text that can stand between quotation marks of a program, on one line."""
    return printable(" ".join(text.split())).translate(dict.fromkeys(map(ord, '\\"`')))
