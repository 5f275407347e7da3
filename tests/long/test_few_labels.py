"""Few labels where silos keep their diffusion models: killed in every phase."""

from __future__ import annotations

from pathlib import Path

import pytest
from interrupted_runs import assert_equal_runs, killed_when_saving, resumed, run, settings, whole_run

from fedsynth.config import Scalar


@pytest.mark.parametrize("diffusion", ["pooled", "dfd"])
def test_a_run_killed_in_every_phase_and_resumed_equals_the_run_in_one_go(diffusion: str, tmp_path: Path) -> None:
    rounds: dict[str, Scalar] = {"num_rounds": 3} if diffusion == "dfd" else {}
    few: dict[str, Scalar] = {"labelled_alpha": 0.3, "labelled_fraction": 0.4, "compare_classifiers": "fixmatch,all"}
    given = settings(tmp_path, "ddsa", diffusion_strategy=diffusion, num_clients=3, sampler="ddpm", **few, **rounds)
    whole = whole_run(given)
    last = len(whole[0].read_metrics())
    # Two rounds of the classifier in each of four phases, and those of what happens once.
    assert last == 4 * 2 + 3 + (3 if diffusion == "dfd" else 1)
    with killed_when_saving(1):
        run(given)
    for number in range(2, last + 1):
        with killed_when_saving(number):
            # Whether round 1 was saved decides what there is to resume: nothing of it was.
            run(resumed(given), lambda replies: replies[::-1])
    assert_equal_runs(run(resumed(given), lambda replies: replies[::-1]), whole)
