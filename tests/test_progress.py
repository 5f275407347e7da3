from __future__ import annotations

import time

import pytest

from fedsynth.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_one_line_every_interval_and_the_last_unit(clock: Clock) -> None:
    lines: list[str] = []
    progress = Progress("local training: step", 12, lines.append, interval=5.0)
    for done in range(1, 13):
        clock.now += 2.0
        progress.update(done, loss=1 / done)
    assert lines == [
        "local training: step 3/12 (25 %), loss 0.3333, 18 s left",
        "local training: step 6/12 (50 %), loss 0.1667, 12 s left",
        "local training: step 9/12 (75 %), loss 0.1111, 6 s left",
        "local training: step 12/12 (100 %), loss 0.08333, took 24 s",
    ]


def test_work_done_before_does_not_count_for_the_speed(clock: Clock) -> None:
    lines: list[str] = []
    progress = Progress("round", 100, lines.append, interval=1.0, done=80)
    clock.now += 30.0
    progress.update(80)
    clock.now += 30.0
    progress.update(90, effective_experts=1.5)
    assert lines == [
        "round 80/100 (80 %), time left unknown",
        "round 90/100 (90 %), effective experts 1.5, 1 min 00 s left",
    ]


def test_speed_is_that_of_the_last_minute(clock: Clock) -> None:
    lines: list[str] = []
    progress = Progress("step", 1000, lines.append, interval=50.0)
    for done in range(1, 400):
        clock.now += 2.0 if done <= 60 else 0.25
        progress.update(done)
    assert lines[0] == "step 25/1000 (2 %), 32 min 30 s left"
    assert lines[-1] == "step 380/1000 (38 %), 2 min 35 s left"


def test_rounds_longer_than_a_minute_count_by_the_last_one(clock: Clock) -> None:
    lines: list[str] = []
    progress = Progress("round", 10, lines.append)
    for done, seconds in ((1, 300.0), (2, 100.0), (3, 100.0)):
        clock.now += seconds
        progress.update(done)
    assert [line.split(", ")[1] for line in lines] == ["45 min 00 s left", "13 min 20 s left", "11 min 40 s left"]


def test_speed_of_a_first_minute_is_its_average(clock: Clock) -> None:
    lines: list[str] = []
    progress = Progress("round", 10, lines.append, interval=0.0)
    for done, seconds in ((1, 10.0), (2, 2.0), (4, 0.0)):
        clock.now += seconds
        progress.update(done)
    assert [line.split(", ")[1] for line in lines] == ["1 min 30 s left", "48 s left", "18 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"),
        (0.85, "850 ms"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
