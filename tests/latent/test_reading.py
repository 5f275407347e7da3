from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrained_folders import unet_of
from safetensors.torch import load_file, save_file
from tiny_autoencoders import kl_of, tiny_of, write_taesd

from fedsynth.errors import UserError
from fedsynth.latent import Autoencoder, read_autoencoder

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def images(count: int = 3, size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def write_kl(folder: Path) -> Path:
    kl_of().save_pretrained(folder)
    return folder


def write_tiny(folder: Path) -> Path:
    tiny_of().save_pretrained(folder)
    return folder


def error_of(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_autoencoder(folder)
    start = f"autoencoder = '{folder}': "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def test_latents_are_those_of_diffusers_pipelines(tmp_path: Path) -> None:
    model = kl_of(scaling_factor=0.3, shift_factor=0.2, mid_block_add_attention=True)
    model.save_pretrained(tmp_path)
    autoencoder = read_autoencoder(tmp_path)
    latents = (model.encode(images(1)).latent_dist.mean - 0.2) * 0.3
    assert (autoencoder.factor, autoencoder.latent_channels, autoencoder.image_channels) == (2, 2, 3)
    assert torch.equal(autoencoder.encode(images(1)), latents)
    assert torch.equal(autoencoder.decode(latents, 3), model.decode(latents / 0.3 + 0.2).sample)


@torch.no_grad()
def test_a_tiny_autoencoder_is_that_of_diffusers(tmp_path: Path) -> None:
    model = tiny_of(scaling_factor=1.5)
    model.save_pretrained(tmp_path)
    autoencoder = read_autoencoder(tmp_path)
    latents = model.encode(images(1)).latents * 1.5
    assert (autoencoder.factor, autoencoder.latent_channels) == (4, 2)
    assert torch.equal(autoencoder.encode(images(1)), latents)
    assert torch.equal(autoencoder.decode(latents, 3), model.decode(latents / 1.5).sample)


@torch.no_grad()
def test_the_taesd_family_without_pooled_blocks_is_diffusers_tiny_autoencoder(tmp_path: Path) -> None:
    model = tiny_of(
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
    )
    # The published files number the layers of one sequence, and the decoder's begin with the clamp.
    for part, network, first in (("encoder", model.encoder, 0), ("decoder", model.decoder, 1)):
        weights = {}
        for name, value in network.state_dict().items():
            _, place, rest = name.split(".", 2)
            weights[f"{int(place) + first}.{rest}"] = value
        save_file(weights, tmp_path / f"{part}.safetensors")
    autoencoder = read_autoencoder(tmp_path)
    latents = model.encode(images()).latents
    assert autoencoder.factor == 8
    assert torch.allclose(autoencoder.encode(images()), latents, atol=1e-6)
    assert torch.allclose(autoencoder.decode(latents, 3), model.decode(latents).sample, atol=1e-6)


@pytest.mark.skipif(not (SHARED / "models" / "taef2").is_dir(), reason="no TAEF2 in ../shared/models")
def test_a_published_autoencoder_brings_real_images_back() -> None:
    autoencoder = read_autoencoder(SHARED / "models" / "taef2")
    assert (autoencoder.factor, autoencoder.latent_channels) == (8, 32)
    files = sorted((SHARED / "data" / "three-laboratories").glob("*/*/*.png"))[::60]
    real = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    x = torch.from_numpy(real).permute(0, 3, 1, 2).float() / 127.5 - 1
    errors = (autoencoder.decode(autoencoder.encode(x), 3).clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
    assert 28 < float((-10 * errors.log10()).mean()) < 33


def test_grey_images_are_repeated_and_averaged_back(tmp_path: Path) -> None:
    autoencoder = read_autoencoder(write_taesd(tmp_path))
    grey = images(channels=1)
    latents = autoencoder.encode(grey)
    assert torch.equal(latents, autoencoder.encode(grey.repeat(1, 3, 1, 1)))
    assert torch.allclose(autoencoder.decode(latents, 1), autoencoder.decode(latents, 3).mean(1, keepdim=True))


def test_latents_do_not_depend_on_what_else_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = read_autoencoder(write_taesd(tmp_path))
    latents = autoencoder.encode(images())
    assert torch.equal(latents[1:2], autoencoder.encode(images()[1:2]))
    decoded = autoencoder.decode(latents, 3)
    monkeypatch.setattr("fedsynth.latent.autoencoder.PIXELS_AT_ONCE", 2 * 16**2)
    assert torch.allclose(autoencoder.decode(latents, 3), decoded, atol=1e-6)


@pytest.mark.parametrize("write", [write_kl, write_tiny, write_taesd])
def test_the_digest_is_that_of_kind_settings_and_weights(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    digest = read_autoencoder(folder).digest
    assert read_autoencoder(write(tmp_path / "b")).digest == digest
    file = next(folder.glob("*coder.safetensors"), folder / WEIGHTS)
    weights = load_file(file)
    changed = {**weights, **{name: value.clone() for name, value in list(weights.items())[:1]}}
    next(iter(changed.values())).view(-1)[0] += 1e-3
    save_file(changed, file)
    assert read_autoencoder(folder).digest != digest
    save_file({name: value.half() for name, value in weights.items()}, file)
    assert read_autoencoder(folder).digest != digest
    save_file(weights, file)
    assert read_autoencoder(folder).digest == digest


def test_the_digest_knows_settings_that_change_latents_and_no_others(tmp_path: Path) -> None:
    write_kl(tmp_path)
    digest = read_autoencoder(tmp_path).digest
    edit(tmp_path / "config.json", _name_or_path="/home/somebody/vae", _diffusers_version="9.9", sample_size=64)
    assert read_autoencoder(tmp_path).digest == digest
    edit(tmp_path / "config.json", scaling_factor=0.5)
    assert read_autoencoder(tmp_path).digest != digest


def test_a_pipeline_is_asked_for_its_autoencoder_and_former_names_are_known(tmp_path: Path) -> None:
    expected = read_autoencoder(write_kl(tmp_path / "vae"))
    assert read_autoencoder(tmp_path).digest == expected.digest
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / "vae" / WEIGHTS)
    assert any("attentions.0.to_q.weight" in name for name in weights)
    for name in list(weights):
        for now, then in former.items():
            if f".attentions.0.{now}." in name:
                weights[name.replace(f".{now}.", f".{then}.")] = weights.pop(name)
    save_file(weights, tmp_path / "vae" / WEIGHTS)
    assert read_autoencoder(tmp_path).digest == expected.digest


def test_folders_that_hold_no_autoencoder_are_named_with_the_remedy(tmp_path: Path) -> None:
    assert error_of(tmp_path / "absent").startswith("there is no such folder")
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty").startswith("holds no autoencoder (found nothing)")
    unet_of().save_pretrained(tmp_path / "unet")
    assert (
        error_of(tmp_path / "unet") == "'config.json' is of a 'UNet2DModel': give one of AutoencoderKL, AutoencoderTiny"
    )
    kl_of().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert "holds no 'diffusion_pytorch_model.safetensors'" in error_of(tmp_path / "pickled")
    assert "pickled weights are not read" in error_of(tmp_path / "pickled")
    (write_taesd(tmp_path / "half") / "decoder.safetensors").unlink()
    assert "holds no 'decoder.safetensors'" in error_of(tmp_path / "half")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[1]", "holds no settings by name"),
        (b'{"_class_name": "AutoencoderKL", "pad": "' + b"x" * 70_000 + b'"}', "longer than 65536 bytes"),
        (b"[" * 60_000, "cannot be read as JSON"),
    ],
)
def test_damaged_settings_are_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    (write_kl(tmp_path) / "config.json").write_bytes(content)
    assert problem in error_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layers_per_block": 10**9}, "layers_per_block in 'config.json' must be 32 at most"),
        ({"block_out_channels": [4] * 1000}, "block_out_channels in 'config.json' has 1000 entries, at most 16"),
        ({"block_out_channels": [4, 10**5]}, "'config.json' and 'diffusion_pytorch_model.safetensors' do not fit"),
        ({"latent_channels": 3}, "do not fit"),
        ({"act_fn": "no such"}, "do not fit"),
        ({"norm_num_groups": {"a": 1}}, "norm_num_groups in 'config.json' is no number or word"),
        ({"scaling_factor": "much"}, "do not fit"),
        ({"scaling_factor": 0}, "is not finite"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    edit(write_kl(tmp_path) / "config.json", **changes)
    assert problem in error_of(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = write_taesd(tmp_path) / "encoder.safetensors"
    weights = load_file(file)
    file.write_bytes(file.read_bytes()[:-100])
    assert error_of(tmp_path).startswith("'encoder.safetensors' is damaged")
    save_file({**weights, "0.bias": torch.full_like(weights["0.bias"], float("nan"))}, file)
    assert error_of(tmp_path).startswith("'0.bias' in 'encoder.safetensors' is not of finite")
    save_file({name: value for name, value in weights.items() if name != "14.bias"}, file)
    assert "not those of the TAESD family" in error_of(tmp_path)
    assert "14.bias" in error_of(tmp_path)
    save_file({**weights, "0.weight": torch.zeros(4, 2, 3, 3)}, file)
    assert "not those of the TAESD family" in error_of(tmp_path)
    save_file({**weights, "99.pool.0.weight": torch.zeros(1)}, file)
    assert "99.pool.0.weight" in error_of(tmp_path)


def test_images_that_it_cannot_encode_are_refused_with_the_key(tmp_path: Path) -> None:
    colour: Autoencoder = read_autoencoder(write_taesd(tmp_path / "colour"))
    colour.check(16, 1)
    with pytest.raises(UserError, match=r"image-size = 28: must be a multiple of 8 .*: set image-size = 32"):
        colour.check(28, 3)
    grey = read_autoencoder(write_taesd(tmp_path / "grey", image_channels=1))
    with pytest.raises(UserError, match="autoencoder: it takes grey images"):
        grey.check(16, 3)
