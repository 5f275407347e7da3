from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsynth.mixture import energy


def energies_by_loops(eps: torch.Tensor) -> list[list[float]]:
    return [[0.5 * sum(float(v) ** 2 for v in sample.flatten()) for sample in silo] for silo in eps]


def answers(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(7, 11, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_equals_loops() -> None:
    np.testing.assert_allclose(energy(answers()), energies_by_loops(answers()), rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    found = energy(answers(dtype))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, energies_by_loops(answers(dtype)), rtol=1e-6)


def test_half_precision_does_not_overflow() -> None:
    np.testing.assert_allclose(energy(torch.full((1, 1, 3, 32, 32), 100.0, dtype=torch.float16)), 0.5 * 3072 * 1e4)


def test_one_silo() -> None:
    assert torch.equal(energy(answers()[3]), energy(answers())[3])
