from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.diffusion import to_model_range, to_uint8

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(2, 4, 8, 4)


def test_every_value_comes_back() -> None:
    assert (to_uint8(to_model_range(EVERY_VALUE)) == EVERY_VALUE).all()


def test_range_and_axes() -> None:
    tensors = to_model_range(EVERY_VALUE)
    assert tensors.dtype == torch.float32
    assert tensors.shape == (2, 4, 4, 8)
    assert (float(tensors.min()), float(tensors.max())) == (-1.0, 1.0)
    assert float(tensors[1, 3, 2, 5]) == pytest.approx(EVERY_VALUE[1, 2, 5, 3] / 127.5 - 1)


def test_values_outside_the_range_are_clipped() -> None:
    samples = torch.tensor([-7.0, -1.001, 0.0, 1.001, 7.0]).view(1, 1, 1, 5)
    assert to_uint8(samples).ravel().tolist() == [0, 0, 128, 255, 255]


def test_results_do_not_share_memory_with_the_input() -> None:
    images = EVERY_VALUE.copy()
    tensors = to_model_range(images)
    images[:] = 0
    assert float(tensors.max()) == 1.0
