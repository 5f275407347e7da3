"""The folder of a base model: what is read of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tiny_bases import CLASSES, SCHEDULE, config_of, embeddings_of, unet_of, write_base

from fedsynth.diffusion import codec_of, count_parameters, initial_unet, make_scheduler, settle_base_model
from fedsynth.diffusion.base_model import read_base_model
from fedsynth.diffusion.denoiser import PromptedUNet
from fedsynth.errors import UserError
from fedsynth.latent.conditions import TABLE, write_conditions
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, CLASSES)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "copy")


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_class_is_asked_by_its_prompt_and_the_weights_are_the_bases(base: Path) -> None:
    network = initial_unet(config_of(base), SPEC)
    plain = UNet2DConditionModel.from_pretrained(base / "unet")
    assert isinstance(network, PromptedUNet)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in plain.state_dict().items())
    x, labels = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 0, 7])
    prompts = torch.stack([embeddings_of(CLASSES)[f"a photo of {label}"] for label in labels.tolist()])
    with torch.inference_mode():
        found, expected = network(x, 500, class_labels=labels).sample, plain(x, 500, prompts).sample
        others = network(x, 500, class_labels=labels + 1).sample
    assert torch.equal(found, expected)
    assert not torch.allclose(found, others)
    assert count_parameters(config_of(base), SPEC) == sum(value.numel() for value in plain.parameters())


def test_latents_are_scaled_as_diffusers_scales_them(base: Path) -> None:
    codec = codec_of(config_of(base), SPEC)
    autoencoder = AutoencoderKL.from_pretrained(base / "vae")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.inference_mode():
        expected = autoencoder.encode(pixels).latent_dist.mean * autoencoder.config.scaling_factor
    assert torch.allclose(codec.encode(images), expected, atol=1e-6)
    assert codec.bound > float(codec.encode(images).abs().max())


@pytest.mark.parametrize("schedule", [{}, {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}])
def test_prediction_and_noise_are_the_bases(schedule: dict[str, str], tmp_path: Path) -> None:
    settled = settle_base_model(config_of(write_base(tmp_path, **schedule))).recipe
    assert settled.prediction == ("v" if schedule else "epsilon")
    theirs = DDPMScheduler(**{**SCHEDULE, **schedule})
    assert torch.equal(make_scheduler(settled).alphas_cumprod, theirs.alphas_cumprod)
    assert settled.schedule == "cosine" or settled.last_alpha_cumprod() == pytest.approx(
        float(theirs.alphas_cumprod[-1])
    )
    with pytest.raises(UserError, match=r"prediction = 'x0': the base model has '.*': leave prediction out"):
        settle_base_model(config_of(tmp_path, prediction="x0"))


def test_the_digest_is_of_whatever_decides_the_results(base: Path, copy: Path) -> None:
    digests = [read_base_model(base).digest, read_base_model(copy).digest]
    write_conditions(copy / TABLE, embeddings_of(CLASSES, seed=1))
    digests.append(read_base_model(copy).digest)
    (copy / "prompts.json").write_text(json.dumps({name: f"a photo of {name}" for name in CLASSES}))
    digests.append(read_base_model(copy).digest)
    change(copy / "scheduler/scheduler_config.json", beta_end=0.013)
    digests.append(read_base_model(copy).digest)
    unet_of(1).save_pretrained(copy / "unet")
    digests.append(read_base_model(copy).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_prompts_of_the_folder_go_before_the_template(copy: Path) -> None:
    (copy / "prompts.json").write_text(json.dumps({name: f"a photo of {9 - int(name)}" for name in CLASSES}))
    network = initial_unet(config_of(copy), SPEC)
    assert isinstance(network, PromptedUNet)
    assert torch.equal(network.conditions[2], embeddings_of(CLASSES)["a photo of 7"])


def _pickled(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")


def _pickled_autoencoder(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")


def _pickled_text_encoder(folder: Path) -> None:
    (folder / TABLE).unlink()
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text('{"model_type": "clip_text_model"}')
    (folder / "text_encoder/pytorch_model.bin").write_bytes(b"pickled")


def _pickled_prompts(folder: Path) -> None:
    (folder / "prompts.json").write_bytes(b"\x80\x04pickled")


def _half(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))


def _other_network(folder: Path) -> None:
    change(folder / "unet/config.json", _class_name="PixArtTransformer2DModel")


def _pooled(folder: Path) -> None:
    change(folder / "unet/config.json", addition_embed_type="text_time")


def _inpainting(folder: Path) -> None:
    unet_of(in_channels=5).save_pretrained(folder / "unet")


def _flow(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")


def _few_prompts(folder: Path) -> None:
    (folder / "prompts.json").write_text('{"0": "zero"}')


def _small_table(folder: Path) -> None:
    write_conditions(folder / TABLE, embeddings_of(CLASSES[:5]))


def _no_text(folder: Path) -> None:
    (folder / TABLE).unlink()


def _no_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            _pickled,
            "holds no 'diffusion_pytorch_model.safetensors' (found 'config.json', 'diffusion_pytorch_model.bin')",
        ),
        (_pickled_autoencoder, "pickled weights are not read, as they can run code: save the autoencoder with"),
        (_pickled_text_encoder, "holds no 'model.safetensors' (found 'config.json', 'pytorch_model.bin')"),
        (_pickled_prompts, "'prompts.json' cannot be read as JSON"),
        (
            _half,
            "'diffusion_pytorch_model.fp16.safetensors' is a variant: rename it to"
            " 'diffusion_pytorch_model.safetensors'",
        ),
        (
            _other_network,
            "its network is a PixArtTransformer2DModel: give one with a UNet2DConditionModel or a DiT",
        ),
        (_pooled, "takes pooled embeddings, as Stable Diffusion XL has them, is not built yet"),
        (_inpainting, "its network takes 5 channels and answers 2, and latents have 2"),
        (_flow, "flow matching, trained betas and rescaled ones are not built yet"),
        (_few_prompts, "'prompts.json' has no prompt of class '1'"),
        (_small_table, "has no embeddings of prompt 'a photo of 5'"),
        (_no_text, "holds neither a text encoder (text_encoder/config.json) nor embeddings of prompts"),
        (_no_autoencoder, "holds no autoencoder"),
    ],
)
def test_what_cannot_be_used_is_refused_by_key(spoil: Callable[[Path], None], problem: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(UserError) as caught:
        initial_unet(settle_base_model(config_of(copy)), SPEC)
    assert str(caught.value).startswith(f"base-model = '{copy}': ")
    assert problem in str(caught.value)


def test_a_name_on_a_hub_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"base-model = .*: there is no such folder: give a folder on this machine"):
        settle_base_model(config_of("stable-diffusion-v1-5/stable-diffusion-v1-5"))


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (9, "must be a multiple of 2 for this autoencoder"),
        (10, "multiple of 4 for this base model: set image-size = 8"),
    ],
)
def test_images_that_cannot_be_halved_are_refused(size: int, problem: str, base: Path) -> None:
    with pytest.raises(UserError, match=f"image-size = {size}: .*{problem}"):
        initial_unet(config_of(base), ImageSpec(1, size, CLASSES))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"strategy": "krum"},
            "strategy = 'krum' with a base-model: that is not built; set train = 'lora', or choose fedavg,",
        ),
        ({"dp_epsilon": 1.0}, "dp-epsilon = 1.0 with a base-model: that is not built"),
        ({"generator_steps": 5}, "generator-steps = 5 with a base-model: that is not built"),
        ({"codec": "pixels"}, "codec = 'pixels' with a base-model: that is not built; leave it out"),
        ({"model": "grid"}, "model = 'grid': does not act beside base-model = 'base'; leave one of them out"),
        ({"init_from": "public"}, "init-from = 'public': does not act beside base-model = 'base'"),
        ({"base_model": "", "prompt": "{class}!"}, "prompt = '{class}!': acts with base-model = a folder only"),
        ({"prompt": "a photo"}, "prompt = 'a photo': must hold {class}"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(
            **{"folder": "base", **changes}
            if "base_model" not in changes
            else {"folder": "", "prompt": changes["prompt"]}
        )
    assert problem in str(caught.value)
