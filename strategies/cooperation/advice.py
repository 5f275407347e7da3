"""Whether cooperation is worth its rounds, from what silos say they hold."""

from __future__ import annotations

import torch

MANY_HOLDERS = 5.0
FEW_IMAGES = 6.0
"""Cooperation was ahead of pooled sampling where 10 silos held 4 images of each class; with 7 images or more, or with 2
to 3 holders, it was not: ``docs/results/regimes.md``, rows "as trained", column "posterior" (``python -m
experiments.regimes --recipe paper``). These two bounds lie between and are a guess."""
AHEAD = (60, 79)
LEVEL = (81, 134)
"""Fréchet distance of cooperation in percent of pooled sampling's, lowest and highest of all seeds: of the row "even,
40, as trained" of that table, and of all other rows "as trained"."""


def advice(label_counts: torch.Tensor) -> str:
    """Return half a sentence for the log: what silos hold, and what that means for the choice of a strategy.

    Args:
        label_counts: images per silo and class (K, num_classes).
    """
    held = label_counts[:, label_counts.sum(0) > 0].double()
    shares = held / held.sum(0)
    holders = float(torch.special.entr(shares).sum(0).exp().mean())
    images = float(held[held > 0].mean())
    found = f"a class has {holders:.1f} effective holders in the mean, a holder {images:.0f} images of it"
    few = holders >= MANY_HOLDERS and images <= FEW_IMAGES
    low, high = AHEAD if few else LEVEL
    measured = f"(measured on digits: dfd had {low} to {high} % of its Fréchet distance)"
    if few:
        return (
            f"{found}: silos this small and alike gain by cooperating over strategy = 'pooled' {measured}; if models"
            " are noisy, set temperature = 10"
        )
    return (
        f"{found}: strategy = 'pooled' is likely to be as good {measured}, in one round, and shows the server every"
        " silo's images; secure-aggregation = true shows it no silo's, and costs some variety"
    )
