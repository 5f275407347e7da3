from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import run_tiny, tiny_settings
from tiny_silos import SERVER_STEPS, TinySilos, play_real

from fedsynth.messages import wire
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPMPlus, learning_is_slow

LOSSES = [1.0, 0.8, 0.7, 0.699, 0.698, 0.5, 0.499, 0.498, 0.497]
"""Falls, stands from round 4 to 5, falls once more, stands from round 8 on, when judged over two rounds at 2 %."""

SLOW = [5, 8, 9]


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> TinySilos:
    return TinySilos(tmp_path_factory.mktemp("fedddpm-plus"))


@pytest.mark.parametrize(
    ("losses", "window", "tolerance", "slow"),
    [
        ([], 1, 0.01, False),
        ([1.0], 1, 0.01, False),
        ([1.0, 1.0], 1, 0.01, True),
        ([1.0, 1.0], 2, 0.01, False),
        ([1.0, 0.9, 1.0], 2, 0.01, True),
        ([1.0, 0.995], 1, 0.01, True),
        ([1.0, 0.985], 1, 0.01, False),
        ([200.0, 199.0], 1, 0.01, True),
        ([200.0, 197.0], 1, 0.01, False),
        ([1.0, 1.5], 1, 0.0, True),
        ([1.0, 1.0], 1, 0.0, False),
        ([1.0, 0.75], 1, 0.25, False),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 5, 0.4, False),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 5, 0.6, True),
        ([0.1, 1.0, 0.9], 1, 0.05, False),
    ],
)
def test_slow_is_a_relative_drop_below_the_tolerance(
    losses: list[float], window: int, tolerance: float, slow: bool
) -> None:
    assert learning_is_slow(losses, window, tolerance) is slow


def test_hand_made_curve_is_slow_where_its_legend_says() -> None:
    found = [k for k in range(1, len(LOSSES) + 1) if learning_is_slow(LOSSES[:k], 2, 0.02)]
    assert found == SLOW


def begun(silos: TinySilos, **changes: Any) -> tuple[FedDDPMPlus, dict[str, torch.Tensor]]:
    settings = {"strategy": "fedddpm-plus", "slow_window": 2, "slow_tolerance": 0.02, **changes}
    _, strategy, arrays = silos.begin(**settings)
    assert isinstance(strategy, FedDDPMPlus)
    return strategy, wire.decode_tensors(arrays)


@pytest.mark.parametrize(("once", "corrected"), [(True, SLOW[:1]), (False, SLOW)])
def test_corrections_come_when_learning_is_slow(silos: TinySilos, once: bool, corrected: list[int]) -> None:
    plus, weights = begun(silos, correct_once=once)
    for number, loss in enumerate(LOSSES, start=1):
        found, metrics = play_real(plus, number, weights, loss)
        averaged, _ = play_real(FedAvg(), number, weights, loss)
        due = number in corrected
        assert metrics["server-steps"] == (SERVER_STEPS if due else 0)
        assert all(torch.equal(found[name], averaged[name]) for name in found) is not due
        weights = found


def test_correction_is_not_repeated_when_the_run_continues(silos: TinySilos) -> None:
    plus, weights = begun(silos)
    for number, loss in enumerate(LOSSES[:6], start=1):
        weights, metrics = play_real(plus, number, weights, loss)
    task, grid, other = silos.meet(strategy="fedddpm-plus", slow_window=2, slow_tolerance=0.02)
    other.resume(task, grid, plus.state_dict())
    assert grid.kinds["query.upload"] == 0
    for number, loss in enumerate(LOSSES[6:], start=7):
        weights, metrics = play_real(other, number, weights, loss)
        assert metrics["server-steps"] == 0


def test_slowness_is_remembered_when_the_run_continues(silos: TinySilos) -> None:
    plus, weights = begun(silos)
    for number, loss in enumerate(LOSSES[:4], start=1):
        weights, _ = play_real(plus, number, weights, loss)
    task, grid, other = silos.meet(strategy="fedddpm-plus", slow_window=2, slow_tolerance=0.02)
    other.resume(task, grid, plus.state_dict())
    assert play_real(other, 5, weights, LOSSES[4])[1]["server-steps"] == SERVER_STEPS


def test_whole_run_saves_all_but_one_correction(tmp_path: Path) -> None:
    """Untrained networks hardly learn in six steps: a tolerance of almost 1 makes the second round slow."""
    slow = {
        "slow_window": 1,
        "slow_tolerance": 0.999,
        "num_rounds": 4,
        "server_steps": 2,
        "aux_samples": 20,
        "num_samples": 2,
    }
    steps = {}
    for once in (True, False):
        settings = tiny_settings(
            tmp_path, **{"strategy": "fedddpm-plus", **slow, "correct_once": once, "run_name": f"once-{once}"}
        )
        folder = run_tiny(settings, report=False)
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        steps[once] = [row["server-steps"] for row in rows]
        assert json.loads(folder.results.read_text())["server-steps"] == sum(steps[once])
    assert steps == {True: [0, 2, 0, 0], False: [0, 2, 2, 2]}
    every_round = 4 * 2
    assert every_round - sum(steps[True]) == every_round - 2
