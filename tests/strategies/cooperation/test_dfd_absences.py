"""Silos that miss rounds: classes wait, catch up and end as if nothing had happened, or stay out by name."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import torch
from dfd_by_hand import (
    LABELS,
    ROUNDS,
    answer,
    begin,
    drive,
    fresh,
    requests,
    samples_of,
    silo_of,
    task_of,
)
from flwr.app import Message, MetricRecord
from hand_made import StubGrid

from fedsynth.errors import RunError
from fedsynth.messages import EpsilonRequest
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD

# Class 2 has one holder, silo-1; the others share classes 0 and 1.
COUNTS = [[5, 1, 0], [0, 0, 4], [1, 3, 0]]
VARIANTS: list[dict[str, Any]] = [
    {"weights": "posterior", "sampler": "sde-dpmsolver++"},
    {"weights": "energy", "sampler": "dpmsolver++"},
    {"weights": "constant", "sampler": "ula"},
    {"weights": "posterior", "sampler": "ddpm", "parallel_levels": 4},
    {"weights": "energy", "sampler": "ddim", "parallel_levels": 4},
]
"""One for every kind of state between rounds: posterior and last answer, last answer, nothing; guesses beside them."""


@pytest.mark.parametrize("options", VARIANTS)
def test_a_class_whose_holder_comes_back_ends_as_if_it_had_never_been_away(options: dict[str, Any]) -> None:
    whole, gappy = (DfD(dfd_rounds=6, **options) for _ in range(2))
    task, rows = task_of(COUNTS), list[MetricRecord]()
    expected = drive(whole, begin(whole, task))
    got = drive(gappy, begin(gappy, task), absent=lambda number, silo: silo == 1 and number in {2, 3, 5}, rows=rows)
    assert [row["waiting-samples"] for row in rows[:5]] == [0, 2, 2, 0, 2]
    assert gappy.num_rounds == len(rows) == whole.num_rounds + 3
    assert torch.equal(samples_of(got), samples_of(expected))
    assert gappy.finish(task, got).notes == ()


@pytest.mark.parametrize(("options", "cut"), zip(VARIANTS, (3, 7, 3, 3, 1), strict=True))
def test_a_run_cut_after_any_round_goes_on_bit_for_bit(options: dict[str, Any], cut: int) -> None:
    def absent(number: int, silo: int) -> bool:
        return silo == 1 and number in {2, 3}

    whole, first, second = (DfD(dfd_rounds=6, **options) for _ in range(3))
    expected = drive(whole, begin(whole, task_of(COUNTS)), absent=absent)
    half = drive(first, begin(first, task_of(COUNTS)), stop=cut, absent=absent)
    file = io.BytesIO()
    torch.save({"samples": samples_of(half), "state": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    ahead = [cohort["ahead"] for cohort in saved["state"]["cohorts"] if "ahead" in cohort]
    assert bool(ahead) == ("parallel_levels" in options)
    assert all(guesses.untyped_storage().nbytes() == guesses.nbytes > 0 for guesses in ahead)
    begin(second, task_of(COUNTS))
    second.load_state_dict(saved["state"])
    got = drive(second, fresh(saved["samples"], LABELS), first=cut + 1, absent=absent)
    assert torch.equal(samples_of(got), samples_of(expected))
    assert second.num_rounds == whole.num_rounds


def test_a_class_whose_holder_stays_away_is_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    strategy, task = DfD(sampler="ddpm", dfd_rounds=ROUNDS), task_of(COUNTS)
    arrays = drive(strategy, begin(strategy, task), absent=lambda number, silo: silo == 1 and number > 2)
    # Three more rounds, in which nobody answers for the class that is missing.
    assert strategy.num_rounds == ROUNDS + 3
    outcome = strategy.finish(task, arrays)
    assert sorted(outcome.labels.tolist()) == [0, 0, 0, 1, 1]
    assert outcome.images.shape == (5, 4, 4, 1)
    assert outcome.notes == ("no images of class c: its holders stopped answering before the end",)
    assert caplog.text.count("class index 2 waits: no usable answer from its holders") == 1
    whole = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    full = samples_of(drive(whole, begin(whole, task_of(COUNTS))))
    assert torch.equal(samples_of(arrays)[LABELS != 2], full[LABELS != 2])


def test_without_any_finished_class_there_is_no_dataset() -> None:
    strategy, task = DfD(sampler="ddpm", dfd_rounds=ROUNDS), task_of(COUNTS)
    arrays = drive(strategy, begin(strategy, task), stop=2)
    with pytest.raises(RunError, match="no class was finished"):
        strategy.finish(task, arrays)


def test_a_silo_that_holds_a_class_at_two_levels_is_asked_twice() -> None:
    # Silo 0 alone holds class 0 and shares class 1 with silo 2: its absence holds class 0 back only.
    counts = [[5, 1, 0], [0, 0, 4], [0, 3, 0]]
    strategy = DfD(sampler="ddpm", dfd_rounds=ROUNDS)
    arrays = drive(strategy, begin(strategy, task_of(counts)), stop=1, absent=lambda number, silo: silo == 0)
    asked = [EpsilonRequest.from_message(m) for m in requests(strategy, 2, arrays) if silo_of(m) == 0]
    assert {sent.timestep: sent.labels.tolist() for sent in asked} == {999: [0, 0, 0], 749: [1, 1]}


@pytest.mark.parametrize("seed", range(3))
def test_random_absences_cost_rounds_or_classes_by_name(seed: int) -> None:
    chance = random.Random(seed)
    # One silo at least is there in every round.
    gone = {(number, silo) for number in range(60) for silo in range(3) if chance.random() < 0.4 and silo != number % 3}
    strategy, task = DfD(sampler="ddpm", dfd_rounds=8), task_of(COUNTS)
    arrays = drive(strategy, begin(strategy, task), absent=lambda number, silo: (number, silo) in gone)
    outcome = strategy.finish(task, arrays)
    lost = {"abc"[label] for label in set(LABELS.tolist()) - set(outcome.labels.tolist())}
    assert lost == {name for name in "abc" if any(f"class {name}" in note for note in outcome.notes)}
    assert len(outcome.images) == sum(name not in lost for name in map("abc".__getitem__, LABELS.tolist()))


def test_after_the_first_round_nobody_waits_an_hour_for_a_silo_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("strategies.base.time.monotonic", lambda: clock[0])
    strategy, task = DfD(sampler="ddpm", dfd_rounds=ROUNDS), task_of(COUNTS)
    arrays, waited = begin(strategy, task), []
    assert strategy.timeout is None
    for number, seconds in ((1, 2.0), (2, 9.0), (3, 1.0)):

        def after_a_while(message: Message, seconds: float = seconds) -> Message:
            clock[0] += seconds / len(COUNTS)
            return answer(message, silo_of(message))

        arrays, _ = strategy.run_round(number, arrays, Exchange(StubGrid([], after_a_while), 5.0))
        waited.append(strategy.timeout)
    # Ten times the slowest answer so far, but never less than a minute.
    assert waited == pytest.approx([60.0, 90.0, 90.0])
    # The user's own counts from the first round.
    begin(strategy, task_of(COUNTS, round_timeout=7.5))
    assert strategy.timeout == 7.5
