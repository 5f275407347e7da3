"""Cooperative inference whose server sees sums only: real silos' code, real messages, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture import holds
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from pretrained_folders import save_model, unet_of

import clients.app
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import InProcessRun, begin_run
from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import (
    EpsilonAnswer,
    EpsilonRequest,
    MaskedAnswer,
    MaskedRequest,
    RevealRequest,
    SampleAnswer,
    SampleRequest,
    transport,
)
from fedsynth.privacy.sums.fixed_point import to_fixed
from strategies import build_strategy
from strategies.base import Outcome

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

    def __init__(
        self, flat: dict[str, Scalar], number: int, fails: Callable[[str, int], bool], models: Mapping[int, Path]
    ) -> None:
        nodes: list[dict[str, Any]] = [{"partition-id": k, "num-partitions": number} for k in range(number)]
        for k, path in models.items():
            nodes[k]["model-path"] = str(path)
        super().__init__(clients.app.app, flat, number, node_configs=nodes)
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
    folder: Path,
    fails: Callable[[str, int], bool] = lambda kind, silo: False,
    models: Mapping[int, Path] | None = None,
    **changes: Scalar,
) -> tuple[InProcessRun, WatchedGrid]:
    """``models`` are what silos bring, by number."""
    given = {"secure-aggregation": True, **{key.replace("_", "-"): value for key, value in changes.items()}}
    settings = {**SETTINGS, "state-dir": str(folder), **given}
    grids: list[WatchedGrid] = []

    def make(flat: dict[str, Scalar], number: int) -> WatchedGrid:
        grids.append(WatchedGrid(flat, number, fails, models or {}))
        return grids[0]

    return begin_run(settings, silos=make), grids[0]


@pytest.fixture(scope="module", name="state")
def models_that_are_trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module", name="watched")
def a_plain_run_and_what_crossed(state: Path) -> tuple[Images, list[Message]]:
    run, grid = begin(state, secure_aggregation=False, **PLAIN)
    return run.outcome().images, [reply for _, _, reply in grid.crossed]


@pytest.fixture(scope="module", name="plain")
def images_of_a_plain_run(watched: tuple[Images, list[Message]]) -> Images:
    return watched[0]


@pytest.fixture(scope="module", name="secure")
def a_secure_run_and_what_crossed(state: Path) -> tuple[Outcome, WatchedGrid]:
    run, grid = begin(state)
    return run.outcome(), grid


def test_images_are_those_of_a_run_that_shows_every_answer(plain: Images, secure: tuple[Outcome, WatchedGrid]) -> None:
    outcome, grid = secure
    images = outcome.images
    assert any("each silo checked its own model before the rounds" in note for note in outcome.notes)
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


def test_answers_that_a_plain_run_shows_are_found_in_no_message_of_a_secure_one(
    watched: tuple[Images, list[Message]], secure: tuple[Outcome, WatchedGrid]
) -> None:
    in_sums, plain = [reply for _, _, reply in secure[1].crossed], watched[1]
    answers = [reply for reply in plain if reply.metadata.message_type == EpsilonRequest.kind]
    assert len(answers) == 4 * 3
    shown = [EpsilonAnswer.from_message(reply).epsilon.numpy() for reply in answers]
    assert all(holds(plain, epsilon[0]) for epsilon in shown)
    # The search sees through fixed point and weights, and through a part of an answer.
    weighted = Array(to_fixed(shown[0], 0.25).ravel().view(np.int32))
    unmasked = Message(RecordDict(transport.pack("masked", ArrayRecord({"masked": weighted}))), reply_to=answers[0])
    assert holds([unmasked], shown[0][3])
    assert not any(holds(in_sums, epsilon[0]) for epsilon in shown)


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
    assert set(outcome.labels.tolist()) == set(range(10)).difference(few)
    assert any("too few silos with a model fit to answer hold it" in note for note in outcome.notes)


def test_classes_of_few_holders_are_drawn_as_pooled_draws_them(state: Path) -> None:
    # With a sampler whose moves carry no noise an image does not depend on what else its silo draws.
    run, grid = begin(state, alpha=0.2, seed=3, sampler="ddim", few_holders="pooled")
    few = [label for label, count in enumerate(run.task.census.holders) if count < 3]
    outcome = run.outcome()
    assert outcome.labels.tolist() == run.task.labels.tolist()
    rows = np.isin(outcome.labels, few)
    settings = {**SETTINGS, "alpha": 0.2, "seed": 3, "sampler": "ddim", "state-dir": str(state), "strategy": "pooled"}
    pooled = begin_run({key: value for key, value in settings.items() if key != "dfd-rounds"}).outcome()
    assert np.abs(outcome.images[rows].astype(int) - pooled.images[rows].astype(int)).max() <= 1
    # Each silo draws the images that it owns, and is asked once.
    drawn = [SampleAnswer.from_message(reply) for kind, _, reply in grid.crossed if kind == SampleRequest.kind]
    assert sum(len(answer.images) for answer in drawn) == rows.sum()
    names = ", ".join(run.task.spec.classes[label] for label in few)
    assert any(note.startswith(f"class {names}: too few silos hold it to hide") for note in outcome.notes)
    assert any("no single one, but of those classes drawn images;" in note for note in outcome.notes)


def test_a_silo_whose_model_fails_its_own_check_takes_no_part(
    state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digits = tuple(map(str, range(10)))
    # Random weights, which predict the noise: their answers have next to nothing to do with it.
    brought = {1: save_model(tmp_path / "model", unet_of(classes=10), digits)}
    run, grid = begin(state, models=brought)
    assert "silo-1: UserError: the own model fails its check at t = " in caplog.text
    # By how much is told to nobody.
    assert "does not follow the noise: gain " in caplog.text
    assert not [reply for _, _, reply in grid.crossed if reply.has_error() and "gain" in reply.error.reason]
    outcome = run.outcome()
    assert len(outcome.images) == 20
    assert [silo for kind, silo, _ in grid.crossed if kind == MaskedRequest.kind] == [0, 2, 3] * 3
    # It has not dropped out of a sum: nobody is asked to agree on who is left.
    assert not [silo for kind, silo, _ in grid.crossed if kind == "query.agree"]

    unchecked, _ = begin(state, models=brought, screening=False)
    assert unchecked.strategy.state_dict()["ready"] == [0, 1, 2, 3]


def test_with_too_few_fit_models_the_run_ends_before_a_round(
    state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digits = tuple(map(str, range(10)))
    brought = dict.fromkeys((0, 3), save_model(tmp_path / "model", unet_of(classes=10), digits))
    with pytest.raises(UserError, match="no class is held by 3 silos that take part"):
        begin(state, models=brought)
    assert "nobody but the silo itself can look at its answers" in caplog.text


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
    assert "acts with strategy = 'dfd', 'fedavg', " in refused(strategy="pooled")
    assert "acts with secure-aggregation = true only" in refused(secure_aggregation=False, few_holders="pooled")
    _, config = build_strategy(RunConfig.from_run_config({"secure-aggregation": True}))
    assert config.settings.model_dump()["weights"] == "constant"
