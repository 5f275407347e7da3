from __future__ import annotations

import re

import pytest
import torch

from strategies.cooperation.advice import advice


def test_advice_names_no_number_of_other_silos_and_no_page_that_a_wheel_lacks() -> None:
    for counts in (4, 40):
        said = advice(torch.full((10, 3), counts))
        assert "docs/" not in said
        assert re.findall(r"\d*\.\d+", said) == ["10.0"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (torch.full((10, 3), 4), "10.0 effective holders in the mean, a holder 4 images of it: silos this small and"),
        (torch.full((10, 3), 7), "a holder 7 images of it: strategy = 'pooled' is likely to be as good"),
        (torch.eye(3, dtype=torch.int64) * 4, "1.0 effective holders in the mean, a holder 4 images of it: strategy"),
        # exp(-.75 ln .75 - .25 ln .25) = 1.755, beside a class that nobody holds
        (torch.tensor([[3, 0], [1, 0]]), "1.8 effective holders in the mean, a holder 2 images of it: strategy"),
    ],
)
def test_advice_follows_overlap_and_images(counts: torch.Tensor, said: str) -> None:
    assert said in advice(counts)
