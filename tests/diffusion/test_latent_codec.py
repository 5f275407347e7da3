from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_autoencoders import write_taesd

from fedsynth.config import AUTO, RunConfig
from fedsynth.diffusion import EncodedImages, codec, make_codec
from fedsynth.diffusion.augmentation import augmented
from fedsynth.diffusion.codec import Codec, LatentCodec, convert, saved_codec
from fedsynth.errors import UserError
from fedsynth.latent import Autoencoder
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(3, 16, ("ant", "bee"))
SHARED = Path(__file__).resolve().parents[3] / "shared"


def pictures(count: int = 4, spec: ImageSpec = SPEC) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, spec.size, spec.size, spec.channels), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_taesd(tmp_path / "autoencoder")


@pytest.fixture
def latents(folder: Path) -> LatentCodec:
    found = make_codec("autoencoder", SPEC, folder)
    assert isinstance(found, LatentCodec)
    return found


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    with mock.patch.object(codec, "_kept", codec._KeptLatents(2**20)):
        yield


def test_samples_are_standardised_latents(latents: LatentCodec) -> None:
    images = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    raw = latents.autoencoder.encode(x)
    samples = latents.encode(images)
    assert (latents.shape, samples.shape, samples.dtype) == ((3, 2, 2), (4, 3, 2, 2), torch.float32)
    assert torch.allclose(samples, latents.statistics.standardise(raw), atol=1e-4)
    decoded = latents.autoencoder.decode(raw, 3).clamp(-1, 1)
    expected = ((decoded + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(latents.decode(samples).astype(int) - expected).max() <= 1
    assert latents.grid == ImageSpec(3, 2, SPEC.classes)
    assert latents.bound > 1
    assert latents.encode(images[:0]).shape == (0, 3, 2, 2)


def test_an_image_is_encoded_once(latents: LatentCodec) -> None:
    images = pictures()
    first = latents.encode(images)
    with mock.patch.object(Autoencoder, "encode", side_effect=AssertionError("again")):
        assert torch.equal(EncodedImages(images.copy(), latents)[torch.tensor([2, 0])], first[[2, 0]])
    with mock.patch.object(codec, "_kept", codec._KeptLatents(3 * first[0].nbytes)):
        assert torch.equal(latents.encode(images), first), "more images than there is room for"
        with mock.patch.object(Autoencoder, "encode", wraps=latents.autoencoder.encode) as encode:
            latents.encode(images[1:])
            assert encode.call_count == 0
            latents.encode(images[:1])
            assert encode.call_count == 1


@pytest.mark.parametrize("augment", [("flip",), ("rotate90",), ("shift",), ("shift", "flip", "rotate90")])
def test_latents_of_variants_are_those_of_varied_pixels_and_shifts_drive_out_no_image(
    augment: tuple[str, ...], latents: LatentCodec
) -> None:
    images, rows = pictures(), torch.arange(4).repeat(8)
    kept = latents.encode(images)
    with mock.patch.object(codec, "_kept", codec._KeptLatents(5 * kept[0].nbytes)):
        latents.encode(images)
        drawn = EncodedImages(images, latents, augment).draw(rows, torch.Generator().manual_seed(0))
        with mock.patch.object(Autoencoder, "encode", wraps=latents.autoencoder.encode) as encode:
            assert torch.equal(latents.encode(images), kept)
            assert (encode.call_count == 0) == ("shift" in augment)
    pixels = torch.from_numpy(images)[rows].permute(0, 3, 1, 2)
    varied = augmented(pixels, augment, torch.Generator().manual_seed(0)).permute(0, 2, 3, 1).numpy()
    assert torch.equal(drawn, latents.encode(varied))


def test_variants_of_images_are_encoded_too(latents: LatentCodec) -> None:
    images = pictures()
    varied = EncodedImages(images, latents, ("flip",)).draw(torch.zeros(20, dtype=torch.long), torch.Generator())
    expected = latents.encode(np.stack([images[0], images[0, :, ::-1]]))
    assert {tuple(sample.flatten().tolist()) for sample in varied} == {tuple(x.flatten().tolist()) for x in expected}


def test_auto_takes_the_autoencoder_that_is_given(folder: Path) -> None:
    assert make_codec(AUTO, SPEC, folder).name == "autoencoder"
    assert make_codec(AUTO, SPEC).name != "autoencoder"
    assert make_codec("unshuffle-2", SPEC, folder).name == "unshuffle-2"
    with pytest.raises(UserError, match="codec = 'autoencoder' needs one"):
        make_codec("autoencoder", SPEC)
    with pytest.raises(UserError, match="codec = 'autoencoder' needs an autoencoder"):
        RunConfig.from_run_config({"codec": "autoencoder"})


def test_the_digest_changes_with_one_weight_and_with_the_format(folder: Path, latents: LatentCodec) -> None:
    assert make_codec("autoencoder", SPEC, folder) == latents
    assert make_codec("autoencoder", ImageSpec(3, 32, SPEC.classes), folder).digest != latents.digest
    weights = load_file(folder / "decoder.safetensors")
    weights["1.bias"][0] += 1e-3
    save_file(weights, folder / "decoder.safetensors")
    changed = make_codec("autoencoder", SPEC, folder)
    assert changed.digest.startswith("autoencoder ")
    assert changed.digest != latents.digest
    assert changed != latents


def test_a_saved_model_finds_its_codec_again(folder: Path, latents: LatentCodec, tmp_path: Path) -> None:
    assert str(folder) not in str(latents.saved)
    assert saved_codec(latents.saved, latents.grid, folder) == latents
    fold = make_codec("unshuffle-2", SPEC)
    assert saved_codec(fold.saved, fold.grid) == fold
    with pytest.raises(UserError, match=f"autoencoder: .* give the folder of '{latents.digest}'"):
        saved_codec(latents.saved, latents.grid)
    other = write_taesd(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=f"'{other}': it is 'autoencoder .*, the saved model is of '{latents.digest}'"):
        saved_codec(latents.saved, latents.grid, other)
    with pytest.raises(UserError, match="image_channels of the saved model: must be 1 or 3"):
        saved_codec({**latents.saved, "image_channels": 10**9}, latents.grid, folder)
    with pytest.raises(UserError, match="the saved model has codec = 'unshuffle-2'; leave it out"):
        saved_codec(fold.saved, fold.grid, folder)


def test_latents_are_not_rearranged(latents: LatentCodec) -> None:
    x = torch.randn(2, *latents.shape)
    assert torch.equal(convert(x, latents, latents), x)
    with pytest.raises(TypeError):
        convert(x, latents, Codec(SPEC))
    pixels = torch.randn(1, 3, 16, 16)
    folded = make_codec("unshuffle-4", SPEC)
    assert torch.equal(convert(convert(pixels, Codec(SPEC), folded), folded, Codec(SPEC)), pixels)


@pytest.mark.skipif(not (SHARED / "models" / "taef2").is_dir(), reason="no TAEF2 in ../shared/models")
def test_real_latents_lie_within_the_bound_and_have_about_unit_variance() -> None:
    files = sorted((SHARED / "data" / "three-laboratories").glob("*/*/*.png"))[::100]
    cells = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    samples = make_codec(AUTO, ImageSpec(3, 64, ("cell",)), SHARED / "models" / "taef2")
    latents = samples.encode(cells)
    assert samples.shape == (32, 8, 8)
    assert float(latents.abs().max()) < samples.bound < 10
    assert 0.9 < float(latents.square().mean().sqrt()) < 1.3
