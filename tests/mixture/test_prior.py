from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsynth.errors import UserError
from fedsynth.mixture import PRIORS, log_prior

COUNTS = torch.tensor([[8, 0, 2], [1, 0, 9], [3, 0, 1]])
LABELS = torch.tensor([0, 2, 2, 0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uniform", [[1 / 3] * 4, [1 / 3] * 4, [1 / 3] * 4]),
        ("size", [[10 / 24] * 4, [10 / 24] * 4, [4 / 24] * 4]),
        (
            "class",
            [[8 / 12, 2 / 12, 2 / 12, 8 / 12], [1 / 12, 9 / 12, 9 / 12, 1 / 12], [3 / 12, 1 / 12, 1 / 12, 3 / 12]],
        ),
    ],
)
def test_by_hand(kind: str, expected: Any) -> None:
    found = log_prior(kind, COUNTS, LABELS)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.exp(), expected, rtol=1e-14)


def test_class_prior_excludes_silos_without_the_class() -> None:
    found = log_prior("class", torch.tensor([[4, 0], [4, 5]]), torch.tensor([0, 1]))
    assert found[0].tolist() == [pytest.approx(np.log(0.5)), -np.inf]
    assert found[1].tolist() == [pytest.approx(np.log(0.5)), 0.0]


def test_silo_without_images_has_no_size() -> None:
    assert log_prior("size", torch.tensor([[0, 0], [4, 5]]), torch.tensor([0]))[:, 0].tolist() == [-np.inf, 0.0]


def test_class_that_nobody_holds() -> None:
    with pytest.raises(UserError, match=r"prior 'class': no silo holds images of class index \[1\]"):
        log_prior("class", COUNTS, torch.tensor([0, 1, 2, 1]))
    for kind in ("uniform", "size"):
        np.testing.assert_allclose(log_prior(kind, COUNTS, torch.tensor([0, 1, 2, 1])).exp().sum(0), 1, rtol=1e-14)


def test_unknown_prior() -> None:
    with pytest.raises(UserError, match=r"unknown prior 'sise': did you mean 'size'\? \(known: uniform, size, class\)"):
        log_prior("sise", COUNTS, LABELS)
    assert set(PRIORS) == {"uniform", "size", "class"}
