"""Embeddings of prompts by a base model's own text encoder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.latent import conditions
from fedsynth.latent.conditions import digest_of_text, encode_prompts
from fedsynth.latent.folder import ModelFolder

PROMPTS = ["a photo of cat", "a photo of dog-3"]


def folder_of(path: Path) -> ModelFolder:
    return ModelFolder(path, f"base-model = '{path}'", "the base model")


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="text_encoder/ is a 't5': give a base model with CLIP's"):
        encode_prompts(folder_of(tmp_path), PROMPTS)
    (tmp_path / "text_encoder/config.json").write_text('{"model_type": "clip_text_model"}')
    monkeypatch.setattr(conditions, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="which needs transformers and tokenizers: pip install 'fedsynth\\[base\\]'"):
        encode_prompts(folder_of(tmp_path), PROMPTS)


@pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers")
def test_prompts_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    from experiments.tiny_base import build

    pipeline = build()
    pipeline.save_pretrained(tmp_path)
    found = encode_prompts(folder_of(tmp_path), PROMPTS)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    assert torch.equal(found, expected)
    assert not torch.allclose(found[0], found[1])
    with pytest.raises(UserError, match=r"prompt 'x{80}' has \d+ tokens, at most 24: give a shorter one"):
        encode_prompts(folder_of(tmp_path), ["x" * 80])
    before = digest_of_text(folder_of(tmp_path))
    build(seed=1).text_encoder.save_pretrained(tmp_path / "text_encoder")
    assert digest_of_text(folder_of(tmp_path)) != before
