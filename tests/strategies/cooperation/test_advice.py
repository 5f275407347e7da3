from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strategies.cooperation.advice import advice


def test_advice_comes_with_what_was_measured() -> None:
    page = (Path(__file__).parents[3] / "docs" / "results" / "regimes.md").read_text(encoding="utf-8")

    def posterior(row: str) -> list[float]:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {row}, as trained |")]
        return [float(value) for value in line.split(" | ")[2].strip("*").split()]

    for counts, found in ((4, posterior("even, 40")), (40, posterior("even, 144") + posterior("uneven, 144"))):
        measured = f"by that of pooled was {min(found):.2f} to {max(found):.2f} where".replace(" 0.", " .")
        assert measured in advice(torch.full((10, 3), counts))


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
