"""A silo that never answers costs a round ``round-timeout``, in averaging as elsewhere; the clock is the test's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Message
from replicated_rounds import AGGREGATE, Replicated, lost

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError
from fedsynth.messages import MaskedTrainRequest, TrainRequest
from strategies import build_strategy
from strategies.few_labels.ddsa import DDSA

PLAIN: dict[str, Scalar] = {"aggregators": "server", "train-steps": 2, "num-rounds": 2}
TRAIN = TrainRequest.kind


class Clock:
    """Seconds that pass only while somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("strategies.base", "strategies.averaging.base", "strategies.conversation.exchange"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


def replicated(folder: Path, **settings: Scalar) -> Replicated:
    run = Replicated(folder, {**PLAIN, **{key.replace("_", "-"): value for key, value in settings.items()}})
    run.run.exchange.reply_log.names = {member.node_id: member.name for member in run.run.task.census}
    return run


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_silo_that_falls_silent_is_left_out_by_name_after_ten_times_the_slowest_answer(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(kind: str, silo: int, question: Message) -> None:
        clock.now += 9.0 if (kind, silo) == (TRAIN, 3) else 0.0

    silent = replicated(tmp_path / "silent")
    silent.on_question = slow
    assert silent.run.strategy.timeout is None, "how long silos take is not known yet"
    silent.play()
    assert silent.run.strategy.timeout == pytest.approx(90.0)
    silent.grid.silent = {(TRAIN, 0)}
    begun = clock.now
    measured = silent.play()
    assert 90.0 <= clock.now - begun < 90.1
    assert "no answer in time from silo-0\n" in caplog.text
    # The round is that of the silos that did answer.
    gone = replicated(tmp_path / "gone")
    gone.play()
    gone.on_question = lost(TRAIN, 0)
    assert measured["num-examples"] == gone.play()["num-examples"]
    assert equal(silent.weights, gone.weights)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [({"secure_aggregation": True}, MaskedTrainRequest.kind), ({"aggregators": "silos"}, TRAIN)],
    ids=["sums", "replicated"],
)
def test_what_the_user_sets_counts_from_the_first_round_however_updates_are_combined(
    mode: dict[str, Scalar], kind: str, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = replicated(tmp_path, round_timeout=7.5, **mode)
    run.grid.silent = {(kind, 0)}
    if kind == TRAIN:
        run.grid.silent |= {(AGGREGATE, 0)}
    begun = clock.now
    run.play()
    # The round, and of a replicated one the vote after it.
    assert 7.5 <= clock.now - begun < 15.2
    assert "no answer in time from silo-0" in caplog.text


def test_too_few_answers_in_time_end_the_run_and_say_who_was_silent(clock: Clock, tmp_path: Path) -> None:
    run = replicated(tmp_path, round_timeout=7.5)
    run.grid.silent = {(TRAIN, silo) for silo in range(3)}
    begun = clock.now
    with pytest.raises(RunError, match="1 usable answers, 2 needed: silo-0: no answer in time; see reply-timeout and"):
        run.play()
    assert 7.5 <= clock.now - begun < 7.6


def test_of_other_work_nothing_is_known_yet() -> None:
    strategy, _ = build_strategy(RunConfig.from_run_config({"strategy": "ddsa", "num-clients": 3}))
    assert isinstance(strategy, DDSA)
    strategy._task = SimpleNamespace(config=RunConfig())  # type: ignore[assignment]
    strategy.note_duration(30.0)
    assert strategy.timeout == 300.0
    strategy.expect_other_work()
    assert strategy.timeout is None
