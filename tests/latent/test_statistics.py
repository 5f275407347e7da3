from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_autoencoders import write_taesd

from fedsynth.errors import UserError
from fedsynth.latent import read_autoencoder
from fedsynth.latent.statistics import public_crops, public_statistics


def test_latents_of_the_photographs_are_standardised(tmp_path: Path) -> None:
    autoencoder = read_autoencoder(write_taesd(tmp_path))
    statistics = public_statistics(autoencoder, 32, 3)
    latents = autoencoder.encode(public_crops(32, 3).float())
    standardised = statistics.standardise(latents)
    by_channel = standardised.transpose(0, 1).flatten(1)
    # Rounding to three digits of the standard deviation.
    assert by_channel.mean(1).abs().max() < 0.006
    assert (by_channel.std(1) - 1).abs().max() < 0.006
    assert statistics.bound == pytest.approx(1.5 * float(standardised.abs().max()), rel=0.06)
    assert torch.allclose(statistics.restore(standardised), latents, atol=1e-5)


def test_statistics_do_not_depend_on_the_last_bits(tmp_path: Path) -> None:
    autoencoder = read_autoencoder(write_taesd(tmp_path))
    statistics = public_statistics(autoencoder, 16, 1)
    with torch.no_grad():
        for weights in autoencoder.network.parameters():
            weights *= 1 + 1e-7
    assert public_statistics(autoencoder, 16, 1).digest == statistics.digest
    assert all(f"{std:.3g}" == f"{std:g}" for std in statistics.std)


def test_statistics_are_those_of_the_format(tmp_path: Path) -> None:
    autoencoder = read_autoencoder(write_taesd(tmp_path))
    of = {shape: public_statistics(autoencoder, *shape).digest for shape in ((16, 1), (16, 3), (32, 3))}
    assert len(set(of.values())) == 3
    # The network is left as it was.
    assert next(autoencoder.network.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("size", "count"), [(8, 60), (32, 60), (64, 16), (128, 4), (512, 2)])
def test_crops_are_many_where_they_are_small(size: int, count: int) -> None:
    crops = public_crops(min(size, 256), 3)
    assert crops.shape == (count, 3, min(size, 256), min(size, 256))
    assert float(crops.abs().max()) <= 1
    assert float(crops.std()) > 0.3


def test_a_channel_that_says_nothing_is_refused(tmp_path: Path) -> None:
    file = write_taesd(tmp_path) / "encoder.safetensors"
    weights = load_file(file)
    weights["14.weight"][1] = 0
    save_file(weights, file)
    with pytest.raises(UserError, match="autoencoder: channel 1 of its latents says nothing"):
        public_statistics(read_autoencoder(tmp_path), 16, 3)
