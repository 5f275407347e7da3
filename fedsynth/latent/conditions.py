"""What a prompt is to a network: embeddings, computed once for every class, so that no text encoder stays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedsynth.latent.folder import ModelFolder, first_line
from fedsynth.weight_files import digest_of_weights

TABLE = "conditions.safetensors"
"""Embeddings by prompt, in place of a text encoder."""
PROMPTS = "prompts.json"
"""Prompts by class, in place of the one with ``{class}``."""
PACKAGES = ("transformers", "tokenizers")
PLACEHOLDER = "{class}"
NOTHING = ""
"""The prompt that guidance goes away from."""
_TOKENISER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def prompts_of(folder: ModelFolder, template: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the prompt of every class: of ``prompts.json`` in the folder, or of the template.

    Raises:
        UserError: the file cannot be read, or has no prompt of a class.
    """
    if not (folder.folder / PROMPTS).is_file():
        return tuple(template.replace(PLACEHOLDER, name) for name in classes)
    prompts = folder.settings(PROMPTS)
    for name in classes:
        if not (isinstance(prompts.get(name), str) and prompts[name].strip()):
            raise folder.error(f"'{PROMPTS}' has no prompt of class '{name}': add it, or remove the file to use prompt")
    return tuple(prompts[name] for name in classes)


def digest_of_text(folder: ModelFolder) -> str:
    """Return the SHA-256 of all that decides embeddings, 64 hexadecimal digits.

    Raises:
        UserError: a file of weights is absent or damaged.
    """
    digest, place = hashlib.sha256(), folder.folder
    files = [place / PROMPTS]
    if (place / TABLE).is_file():
        weights = place / TABLE
    else:
        files += [place / "tokenizer" / name for name in _TOKENISER_FILES]
        files.append(place / "text_encoder" / "config.json")
        weights = _text_encoder(folder).weights_file("model.safetensors")
    for path in files:
        digest.update(
            f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''}\n".encode()
        )
    try:
        digest.update(digest_of_weights(weights).encode())
    except ValueError as error:
        raise folder.error(f"{error}: {folder.again}") from error
    return digest.hexdigest()


def read_conditions(folder: ModelFolder, prompts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings of prompts (n, L, D), float32, from the folder's table, or from its text encoder.

    Raises:
        UserError: the table lacks a prompt, there is neither table nor text encoder, it cannot be used, a package is
            missing, or a prompt is too long.
    """
    if not (folder.folder / TABLE).is_file():
        return encode_prompts(folder, prompts)
    table = folder.weights(TABLE)
    for prompt in prompts:
        if prompt not in table:
            raise folder.error(
                f"'{TABLE}' has no embeddings of prompt '{prompt}': write it again with all prompts of the run, or"
                " remove it to have the text encoder asked"
            )
    rows = [table[prompt].float() for prompt in prompts]
    if len({row.shape for row in rows}) != 1 or rows[0].ndim != 2:
        raise folder.error(f"embeddings in '{TABLE}' must all be of one shape (tokens, numbers): write it again")
    return torch.stack(rows)


def write_conditions(path: Path, conditions: Mapping[str, torch.Tensor]) -> None:
    """Write embeddings (L, D) by prompt, for machines without a text encoder."""
    save_file({prompt: value.contiguous() for prompt, value in conditions.items()}, path)


def encode_prompts(folder: ModelFolder, prompts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings of prompts (n, L, D) as Stable Diffusion's pipeline computes them; nothing stays in memory.

    Raises:
        UserError: as of :func:`read_conditions`.
    """
    encoder_folder = _text_encoder(folder)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise folder.error(
            f"its prompts are to be read by its text encoder, which needs {' and '.join(missing)}: pip install"
            f" 'fedsynth[base]', or put the embeddings beside it ('{TABLE}')"
        )
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()

    encoder_folder.weights_file("model.safetensors")
    try:
        tokeniser = CLIPTokenizer.from_pretrained(folder.folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(encoder_folder.folder, use_safetensors=True, local_files_only=True)
        most = min(tokeniser.model_max_length, encoder.config.max_position_embeddings)
        lengths = [len(tokeniser(prompt).input_ids) for prompt in prompts]
    except Exception as error:  # whatever transformers makes of such files
        raise folder.error(
            f"tokenizer/ and text_encoder/ cannot be used ({first_line(error)}): {folder.again}"
        ) from error
    if max(lengths) > most:
        prompt = prompts[lengths.index(max(lengths))]
        raise folder.error(f"prompt '{prompt}' has {max(lengths)} tokens, at most {most}: give a shorter one")
    tokens = tokeniser(list(prompts), padding="max_length", max_length=most, return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.inference_mode():
        embeddings: torch.Tensor = encoder.eval().float()(tokens.input_ids, attention_mask=mask)[0]
    return embeddings.clone()


def _text_encoder(folder: ModelFolder) -> ModelFolder:
    found = ModelFolder(folder.folder / "text_encoder", folder.given, "the base model")
    if not (found.folder / "config.json").is_file():
        raise folder.error(
            f"holds neither a text encoder (text_encoder/config.json) nor embeddings of prompts ('{TABLE}'): give the"
            " whole folder of the base model"
        )
    kind = found.settings().get("model_type")
    if kind != "clip_text_model":
        raise folder.error(f"text_encoder/ is a {kind!r:.60}: give a base model with CLIP's (clip_text_model)")
    return found
