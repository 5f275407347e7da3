"""What a user of cooperative inference should know of its competitor."""

from __future__ import annotations

LEVEL = (80, 109)
"""Fréchet distance of cooperation in percent of pooled sampling's, lowest and highest of all seeds and both kinds of
silos: ``docs/results/regimes.md``, default recipe, rows "as trained", column "posterior"."""

ADVICE = (
    f"strategy = 'pooled' is likely to be as good (measured on digits, 40 images a silo: dfd had {LEVEL[0]} to"
    f" {LEVEL[1]} % of its Fréchet distance), in one round, and shows the server every silo's images;"
    " secure-aggregation = true shows it no silo's, and costs variety"
)
