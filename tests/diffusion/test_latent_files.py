"""Latents on a disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_autoencoders import write_taesd

from fedsynth.diffusion import EncodedImages, codec, make_codec
from fedsynth.diffusion.codec import Codec, latents_kept_in
from fedsynth.latent import Autoencoder
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(3, 16, ("ant", "bee"))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
ALL = torch.arange(4)


@pytest.fixture
def latents(tmp_path: Path) -> Codec:
    return make_codec("autoencoder", SPEC, write_taesd(tmp_path / "autoencoder"))


@pytest.fixture(autouse=True)
def another_process() -> Iterator[None]:
    with mock.patch.object(codec, "_kept", codec._KeptLatents(2**20)):
        yield


def encoded(
    folder: Path, own: Codec, images: np.ndarray = IMAGES, most_bytes: float = 2**20, augment: tuple[str, ...] = ()
) -> tuple[torch.Tensor, int]:
    """The latents that a process has of images, and how many images it encoded."""
    encode = Autoencoder.encode
    with (
        mock.patch.object(codec, "_kept", codec._KeptLatents(2**20)),
        mock.patch.object(Autoencoder, "encode", autospec=True, side_effect=encode) as asked,
        latents_kept_in(folder, own, most_bytes) as kept,
    ):
        assert kept == own
        drawn = EncodedImages(images, kept, augment).draw(torch.arange(len(images)), torch.Generator().manual_seed(0))
    return drawn, sum(len(call.args[1]) for call in asked.call_args_list)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_another_process_encodes_no_image_again(latents: Codec, tmp_path: Path) -> None:
    first, asked = encoded(tmp_path / "kept", latents)
    assert asked == 4
    assert torch.equal(first, latents.encode_once(IMAGES))
    again, asked = encoded(tmp_path / "kept", latents, IMAGES[::-1].copy())
    assert (torch.equal(again.flip(0), first), asked) == (True, 0)
    (file,) = files_in(tmp_path / "kept")
    assert file.stat().st_mode & 0o777 == 0o600
    more = np.concatenate([IMAGES[:2], 255 - IMAGES[:1]])
    found, asked = encoded(tmp_path / "kept", latents, more)
    assert (torch.equal(found, latents.encode_once(more)), asked) == (True, 1)
    assert encoded(tmp_path / "kept", latents, more)[1] == 0
    assert len(files_in(tmp_path / "kept")) == 2, "nothing is written of what is there"


def test_variants_are_found_again_and_shifts_are_not_kept(latents: Codec, tmp_path: Path) -> None:
    flipped, _ = encoded(tmp_path / "kept", latents, augment=("flip",))
    again, asked = encoded(tmp_path / "kept", latents, augment=("flip",))
    assert (torch.equal(again, flipped), asked) == (True, 0)
    encoded(tmp_path / "shifted", latents, augment=("shift",))
    assert not (tmp_path / "shifted").exists()


def test_pixels_leave_nothing(tmp_path: Path) -> None:
    _, asked = encoded(tmp_path / "kept", make_codec("unshuffle-2", SPEC))
    assert (asked, (tmp_path / "kept").exists()) == (0, False)


def test_latents_of_another_autoencoder_or_version_of_torch_are_others(
    latents: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(tmp_path / "kept", latents)
    other = make_codec("autoencoder", SPEC, write_taesd(tmp_path / "other", seed=1))
    found, asked = encoded(tmp_path / "kept", other)
    assert (torch.equal(found, other.encode_once(IMAGES)), asked) == (True, 4)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert encoded(tmp_path / "kept", latents)[1] == 4


@pytest.mark.parametrize("place", [0, 300, -1])
def test_damaged_latents_are_encoded_again(
    place: int, latents: Codec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = encoded(tmp_path / "kept", latents)
    (file,) = files_in(tmp_path / "kept")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    again, asked = encoded(tmp_path / "kept", latents)
    assert (torch.equal(again, first), asked) == (True, 4)
    assert f"{file} is damaged: its images are encoded again" in caplog.text
    assert encoded(tmp_path / "kept", latents)[1] == 0


def test_where_nothing_can_be_written_nothing_is_kept(
    latents: Codec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    (tmp_path / "kept").write_text("a file in its place")
    for _ in range(2):
        found, asked = encoded(tmp_path / "kept", latents)
        assert (torch.equal(found, latents.encode_once(IMAGES)), asked) == (True, 4)
    assert f"latents are not kept in {tmp_path / 'kept'}: " in caplog.text


def test_what_was_not_used_for_longest_gives_way_and_what_is_in_use_stays(latents: Codec, tmp_path: Path) -> None:
    sets = [np.roll(IMAGES, step, 1) for step in range(4)]
    folder = tmp_path / "kept"
    encoded(folder, latents, sets[0])
    (first,) = files_in(folder)
    room = 2.5 * first.stat().st_size
    encoded(folder, latents, sets[1], room)
    for age, file in enumerate(sorted(files_in(folder), key=lambda file: file != first)):
        os.utime(file, (age, age))
    assert encoded(folder, latents, sets[0], room)[1] == 0, "which makes it the last that was used"
    encoded(folder, latents, sets[2], room)
    assert [encoded(folder, latents, images, room)[1] for images in (sets[0], sets[2])] == [0, 0]
    assert len(files_in(folder)) == 2
    used = np.concatenate([sets[0], sets[2], sets[3]])
    assert encoded(folder, latents, used, room)[1] == 4
    assert len(files_in(folder)) == 2, "no room beside what this process uses"
    assert encoded(folder, latents, sets[3], 10)[1] == 4
    assert files_in(folder) == [], "a bound that was lowered acts"


def test_many_latents_do_not_wait_in_memory_for_the_end(
    latents: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsynth.diffusion.latent_files._WAITING_BYTES", 2 * latents.encode_once(IMAGES[:1]).nbytes)
    with latents_kept_in(tmp_path / "kept", latents) as kept:
        found = EncodedImages(IMAGES, kept)[ALL[:3]]
        assert len(files_in(tmp_path / "kept")) == 1
        assert torch.equal(kept.encode(IMAGES[:3]), found)
    assert len(files_in(tmp_path / "kept")) == 2
    assert encoded(tmp_path / "kept", latents)[1] == 1
