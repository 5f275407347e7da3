"""The small base model of the experiments: what its training changes, and what it leaves."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers")


def test_training_changes_every_part_and_sets_the_scale_of_latents() -> None:
    from experiments.tiny_base import SIDE, build, train_autoencoder, train_unet

    pipeline, generator = build(), torch.Generator().manual_seed(0)
    parts = {"vae": pipeline.vae, "unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    before = {name: next(iter(part.parameters())).detach().clone() for name, part in parts.items()}
    images, prompts = torch.rand(20, 3, SIDE, SIDE, generator=generator) * 2 - 1, ["a photo of 0", "a photo of 1"] * 10
    assert 0 < train_autoencoder(pipeline.vae, images, 2, generator) < 4
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, rel=0.01)
    assert train_unet(pipeline, images, prompts, 2, generator) > 0
    assert not any(torch.equal(next(iter(part.parameters())), before[name]) for name, part in parts.items())
