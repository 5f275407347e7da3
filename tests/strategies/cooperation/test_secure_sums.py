"""Cooperative inference whose server sees sums only: real silos' code, real messages, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

import clients.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import InProcessRun, begin_run
from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import EpsilonRequest, MaskedAnswer, MaskedRequest, RevealRequest
from strategies import build_strategy

SETTINGS: dict[str, Scalar] = {
    "alpha": 1000.0,
    "block-out-channels": "8,8",
    "copy-check": False,
    "dfd-rounds": 3,
    "num-clients": 4,
    "num-samples": 20,
    "samples-per-client": 60,
    "train-steps": 4,
}
Images = np.ndarray[Any, np.dtype[np.uint8]]
PLAIN: dict[str, Scalar] = {"weights": "constant", "screening": False, "max-silo-weight": 0.5}


class WatchedGrid(InProcessGrid):
    """Keeps what crossed, and has silos fail where ``fails(kind, silo)`` says so."""

    def __init__(self, flat: dict[str, Scalar], number: int, fails: Callable[[str, int], bool]) -> None:
        super().__init__(clients.app.app, flat, number)
        self.crossed: list[tuple[str, int, Message]] = []
        self._fails = fails

    def _answer(self, message: Message) -> str:
        kind, silo = message.metadata.message_type, message.metadata.dst_node_id - 100
        number = super()._answer(message)
        if self._fails(kind, silo):
            self._answers[number] = Message(Error(code=0, reason="gone"), reply_to=message)
        self.crossed.append((kind, silo, self._answers[number]))
        return number


def begin(
    folder: Path, fails: Callable[[str, int], bool] = lambda kind, silo: False, **changes: Scalar
) -> tuple[InProcessRun, WatchedGrid]:
    given = {"secure-aggregation": True, **{key.replace("_", "-"): value for key, value in changes.items()}}
    settings = {**SETTINGS, "state-dir": str(folder), **given}
    grids: list[WatchedGrid] = []

    def make(flat: dict[str, Scalar], number: int) -> WatchedGrid:
        grids.append(WatchedGrid(flat, number, fails))
        return grids[0]

    return begin_run(settings, silos=make), grids[0]


@pytest.fixture(scope="module", name="state")
def models_that_are_trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module", name="plain")
def images_of_a_plain_run(state: Path) -> Images:
    settings = {**SETTINGS, **PLAIN, "state-dir": str(state)}
    return begin_run(settings).outcome().images


def test_images_are_those_of_a_run_that_shows_every_answer(
    plain: Images, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, grid = begin(state)
    outcome = run.outcome()
    images = outcome.images
    assert "single answers can be neither calibrated nor screened" in caplog.text
    assert any("answers were not screened" in note for note in outcome.notes)
    difference = np.abs(images.astype(int) - plain.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
    kinds = [kind for kind, _, _ in grid.crossed]
    assert EpsilonRequest.kind not in kinds
    assert kinds.count(MaskedRequest.kind) == kinds.count(RevealRequest.kind) == 4 * 3
    for _, _, reply in (row for row in grid.crossed if row[0] == MaskedRequest.kind):
        numbers = MaskedAnswer.from_message(reply).masked.numpy().view(np.uint32)
        # Noise predictions in fixed point would all lie near 0 or near 2**32.
        assert 0.4 < numbers.mean() / 2**32 < 0.6


@pytest.mark.parametrize("kind", [MaskedRequest.kind, RevealRequest.kind])
def test_a_silo_that_drops_out_of_every_round_is_left_out_of_the_sums(kind: str, state: Path) -> None:
    run, grid = begin(state, fails=lambda asked, silo: asked == kind and silo == 2)
    outcome = run.outcome()
    assert len(outcome.images) == 20
    signed = [silo for asked, silo, _ in grid.crossed if asked == "query.agree"]
    # Whoever answered before it fell silent is in the sum: nobody has to agree on anything.
    assert signed == ([0, 1, 3] if kind == MaskedRequest.kind else [])
    # With and without it, two sums would differ by its answer: whoever has left stays out.
    asked = [silo for asked, silo, _ in grid.crossed if asked == MaskedRequest.kind]
    assert asked == ([0, 1, 2, 3, 0, 1, 3, 0, 1, 3] if kind == MaskedRequest.kind else [0, 1, 2, 3] * 3)


def test_with_too_few_left_the_run_ends_and_says_who_is_needed(state: Path) -> None:
    run, _ = begin(state, fails=lambda asked, silo: asked == MaskedRequest.kind and silo < 2)
    with pytest.raises(RunError, match="no secure sum at timestep 994 in 3 attempts: 2 usable answers, 3 needed"):
        run.outcome()


def test_a_round_that_failed_is_made_again_with_other_masks(state: Path) -> None:
    failed: list[int] = []

    def fails(asked: str, silo: int) -> bool:
        if asked != MaskedRequest.kind or silo > 1 or len(failed) == 2:
            return False
        failed.append(silo)
        return True

    run, grid = begin(state, fails=fails)
    run.strategy.run_round(1, run.arrays, run.exchange)
    masked = [reply for kind, silo, reply in grid.crossed if kind == MaskedRequest.kind and silo == 3]
    first, second = (MaskedAnswer.from_message(reply).masked.numpy() for reply in masked)
    assert not np.array_equal(first, second)


def test_classes_of_few_holders_are_left_out_by_name(state: Path) -> None:
    run, _ = begin(state, alpha=0.2, seed=3)
    holders = run.task.census.holders
    few = [label for label, count in enumerate(holders) if count < 3]
    assert few, "the split was to leave some classes with two silos"
    outcome = run.outcome()
    assert set(outcome.labels.tolist()).isdisjoint(few)
    assert any("fewer than three silos hold it" in note for note in outcome.notes)


def test_a_run_that_stops_within_a_sum_is_resumed_to_the_same_images(plain: Images, state: Path) -> None:
    rounds: list[int] = []
    stopped, _ = begin(state, fails=lambda asked, silo: asked == RevealRequest.kind and len(rounds) == 1)
    after, _ = stopped.strategy.run_round(1, stopped.arrays, stopped.exchange)
    rounds.append(1)
    saved = stopped.strategy.state_dict()
    with pytest.raises(RunError, match="must reveal first"):
        stopped.strategy.run_round(2, after, stopped.exchange)

    run, _ = begin(state)
    run.strategy.load_state_dict(saved)
    arrays, _ = run.strategy.run_round(2, after, run.exchange)
    arrays, _ = run.strategy.run_round(3, arrays, run.exchange)
    images = run.strategy.finish(run.task, arrays).images
    assert np.abs(images.astype(int) - plain.astype(int)).max() <= 1

    # What was answered before is not answered again, by the silo's disk and not by its process.
    earlier, _ = begin(state)
    earlier.strategy.load_state_dict(saved)
    with pytest.raises(RunError, match="steps must rise"):
        earlier.strategy.run_round(2, after, earlier.exchange)


def refused(**changes: Scalar) -> str:
    given: dict[str, Scalar] = {"secure-aggregation": True, **{k.replace("_", "-"): v for k, v in changes.items()}}
    with pytest.raises(UserError) as error:
        build_strategy(RunConfig.from_run_config(given))
    return str(error.value)


def test_settings_that_need_single_answers_are_refused_with_the_reason() -> None:
    for weights in ("posterior", "energy"):
        said = refused(weights=weights)
        assert said.startswith(f"weights = '{weights}' with secure-aggregation = true: they are computed from every")
    assert "parallel-levels = 3 with secure-aggregation" in refused(parallel_levels=3, sampler="ddpm")
    assert "num-clients = 2 with secure-aggregation" in refused(num_clients=2)
    assert "acts with strategy = 'dfd' only" in refused(strategy="fedavg")
    _, config = build_strategy(RunConfig.from_run_config({"secure-aggregation": True}))
    assert config.settings.model_dump()["weights"] == "constant"
