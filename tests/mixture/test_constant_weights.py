"""Weights from whole numbers against those by logarithms and exponentials, as the server computes them."""

from __future__ import annotations

import pytest
import torch

from fedsynth.mixture import log_prior
from fedsynth.mixture.constant_weights import asked_rows, constant_weights
from fedsynth.mixture.screening import bound_weights

COUNTS = torch.tensor([[90, 0, 7, 3], [1, 5, 0, 3], [2, 0, 11, 3]])
LABELS = torch.tensor([0, 3, 2, 2, 1, 0])


@pytest.mark.parametrize("most", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("prior", ["class", "size", "uniform"])
def test_weights_are_those_that_a_server_composes_with(prior: str, most: float) -> None:
    by_logarithms = bound_weights(log_prior(prior, COUNTS, LABELS).exp(), most).float()
    torch.testing.assert_close(constant_weights(prior, COUNTS, LABELS, most), by_logarithms, atol=1e-7, rtol=0)


def test_a_silo_is_asked_about_classes_that_it_holds() -> None:
    assert asked_rows("class", COUNTS[1], LABELS).tolist() == [True, True, False, False, True, True]
    assert asked_rows("uniform", COUNTS[1], LABELS).all()
    assert asked_rows("size", COUNTS[1], LABELS).all()
    assert not asked_rows("size", torch.zeros(4, dtype=torch.int64), LABELS).any()
