"""Windows of noise levels and bounded messages, with silos whose noise predictions are exact for what they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import dfd_by_hand
import pytest
import torch
from dfd_by_hand import begin, moved, requests, samples_of, silo_of, trained_at_once
from flwr.app import Message, MetricRecord
from hand_made import StubGrid

from fedsynth.errors import RunError, UserError
from fedsynth.messages import EpsilonRequest, transport
from fedsynth.mixture import picard
from strategies.base import Task
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
LABELS = torch.arange(24) % 3
# Class 2 has one holder, silo-1; the others share classes 0 and 1.
COUNTS = [[5, 1, 0], [0, 0, 4], [1, 3, 0]]
LEVELS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "ddim energy": {"sampler": "ddim", "weights": "energy", "energy_scale": 0.3},
    "ddpm posterior": {"sampler": "ddpm", "weights": "posterior"},
}
CONSTANT = {"sampler": "ddim", "weights": "constant"}
Answer = Callable[[Message, int], Message]
Tolerate = Callable[[float], None]
TOLERANCE = picard.TOLERANCE


IMAGES = 1.8 * torch.rand((3, 3, 2, 1, 4, 4), generator=torch.Generator().manual_seed(0)) - 0.9
"""Two images of every class, others for every silo."""


def exact(silo: int, x: torch.Tensor, t: torch.Tensor | int, labels: torch.Tensor) -> torch.Tensor:
    """The prediction for the silo's images with some noise on them."""
    alpha = ALPHAS[torch.as_tensor(t)].expand(len(x))[:, None, None, None, None]
    spread = alpha * 0.1**2 + 1 - alpha
    apart = x[:, None] - alpha.sqrt() * IMAGES[silo, labels]
    share = torch.softmax(-(apart.square() / (2 * spread)).flatten(2).sum(2), 1)[..., None, None, None]
    return ((1 - alpha).sqrt() / spread * share * apart).sum(1)


def answer(message: Message, silo: int) -> Message:
    return dfd_by_hand.answer(message, silo, exact)


def changed(made: Message, change: Callable[[torch.Tensor], torch.Tensor]) -> Message:
    """An answer with other noise predictions."""
    made.content["epsilon"] = transport.encode_tensors({"e": change(transport.decode(made.content["epsilon"]["e"]))})
    return made


def task_of(**changes: Any) -> Task:
    return dfd_by_hand.task_of(COUNTS, LABELS, **changes)


def strategy_of(variant: str, window: int = 1, levels: int = LEVELS) -> DfD:
    return DfD(dfd_rounds=levels, parallel_levels=window, **{**CONSTANT, **VARIANTS.get(variant, {})})


@pytest.fixture(autouse=True)
def tolerate(monkeypatch: pytest.MonkeyPatch) -> Tolerate:
    """Only what does not change at all has converged, unless a test says otherwise."""

    def set_tolerance(change: float) -> None:
        monkeypatch.setattr(picard, "TOLERANCE", change)

    set_tolerance(0.0)
    return set_tolerance


drive = partial(dfd_by_hand.drive, answers=answer)


def final(strategy: DfD, **options: Any) -> torch.Tensor:
    return samples_of(drive(strategy, begin(strategy, task_of()), **options))


@pytest.mark.parametrize(("variant", "window"), [("ddim energy", 3), ("ddpm posterior", 3), ("ddpm posterior", 20)])
def test_windows_end_where_one_level_after_the_other_ends(variant: str, window: int, tolerate: Tolerate) -> None:
    tolerate(1e-6)
    sequential = final(strategy_of(variant))
    strategy = strategy_of(variant, window)
    assert (final(strategy) - sequential).abs().max() < 1e-5
    assert strategy.num_rounds <= LEVELS


def test_at_the_default_tolerance_rounds_are_half_and_images_nearly_the_same(tolerate: Tolerate) -> None:
    tolerate(TOLERANCE)
    sequential = final(strategy_of("ddpm posterior", levels=50))
    strategy = strategy_of("ddpm posterior", 20, levels=50)
    assert (final(strategy) - sequential).abs().max() < 0.02
    assert strategy.num_rounds <= 25


def test_a_silo_is_asked_about_all_levels_of_the_window_in_one_message() -> None:
    strategy = strategy_of("ddim constant", 3)
    arrays = begin(strategy, task_of())
    steps = [round(999 - n * 1000 / LEVELS) for n in range(LEVELS)]
    for number, expected in ((1, steps[:3]), (2, steps[1:4])):
        asked = requests(strategy, number, arrays)
        assert sorted(map(silo_of, asked)) == [0, 1, 2]
        for message in asked:
            sent = EpsilonRequest.from_message(message)
            held = torch.tensor(COUNTS[silo_of(message)])[LABELS] > 0
            assert sent.timestep is None
            assert torch.equal(sent.labels, LABELS[held].repeat(3))
            assert sent.timesteps is not None
            assert (sent.timesteps.reshape(3, -1) - torch.tensor(expected)[:, None]).abs().max() <= 1
        arrays, _ = moved(strategy, number, [answer(message, silo_of(message)) for message in asked])


def test_metrics_say_how_far_samples_got_and_what_it_cost(tolerate: Tolerate) -> None:
    tolerate(0.1)
    rows: list[MetricRecord] = []
    final(strategy_of("ddim constant", 5), rows=rows)
    done, evaluations = ([row[key] for row in rows] for key in ("levels-done", "function-evaluations"))
    assert sum(done) == pytest.approx(LEVELS)
    assert min(done) >= 1 or done[-1] < 1, "no class waits before the first is finished"
    assert evaluations[0] == 5
    assert evaluations[-1] <= 5
    assert LEVELS < sum(evaluations) <= 5 * len(rows)
    rows.clear()
    final(strategy_of("ddim constant"), rows=rows)
    assert all(row["levels-done"] == row["function-evaluations"] == 1.0 for row in rows)


@pytest.mark.parametrize(("variant", "size"), [("ddim constant", 3e38), ("ddpm posterior", 100.0)])
def test_nonsense_about_guesses_costs_no_more_than_the_gain(variant: str, size: float, tolerate: Tolerate) -> None:
    tolerate(1e-6)

    def honest_where_samples_stand(message: Message, silo: int) -> Message:
        timesteps = EpsilonRequest.from_message(message).timesteps
        assert timesteps is not None
        guessed = timesteps < timesteps.max()

        def spoil(epsilon: torch.Tensor) -> torch.Tensor:
            epsilon[guessed] = size * torch.sin(40 * epsilon[guessed])
            return epsilon

        return changed(answer(message, silo), spoil)

    strategy = strategy_of(variant, 5)
    assert torch.equal(final(strategy, answers=honest_where_samples_stand), final(strategy_of(variant)))
    assert strategy.num_rounds == LEVELS


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_silo_that_is_away_is_left_out_as_one_level_after_the_other_would(variant: str) -> None:
    """With a tolerance of 0 the first iteration settles the first level: there the sequential run misses it too."""
    for last in (1, 100):
        windows = [
            final(strategy_of(variant, window), absent=lambda number, silo, last=last: silo == 0 and number <= last)
            for window in (1, 5)
        ]
        assert (windows[1] - windows[0]).abs().max() < 1e-5
    assert (windows[1] - final(strategy_of(variant, 5))).abs().max() > 0.1, "silo-0 has a say when it is there"


@pytest.mark.parametrize("sampler", ["dpmsolver++", "ula"])
def test_samplers_that_look_back_or_stay_are_refused(sampler: str) -> None:
    with pytest.raises(UserError, match=rf"parallel-levels = 2 needs .*, not '{re.escape(sampler)}'"):
        DfD(sampler=sampler, weights="constant", parallel_levels=2)
    DfD(sampler=sampler, weights="constant", parallel_levels=1)


class TestScreening:
    """Answers about guesses off their noise level, honest and hostile."""

    @staticmethod
    def play(strategy: DfD, answers: Answer) -> torch.Tensor:
        """Play a run with screening, whose calibration all silos pass."""

        def respond(message: Message) -> Message:
            training = message.metadata.message_type == "query.prepare"
            return trained_at_once(message) if training else answer(message, silo_of(message))

        arrays = strategy.begin(task_of(screening=True), Exchange(StubGrid([], respond), 5.0))
        return samples_of(drive(strategy, arrays, answers=answers))

    def test_honest_silos_are_not_accused(self, caplog: pytest.LogCaptureFixture, tolerate: Tolerate) -> None:
        tolerate(0.05)
        screened = self.play(strategy_of("ddpm posterior", 8), answer)
        assert torch.equal(screened, final(strategy_of("ddpm posterior", 8)))
        assert "left out" not in caplog.text

    def test_a_hostile_silo_is_left_out_of_every_level_that_counts(self, caplog: pytest.LogCaptureFixture) -> None:
        def hostile(message: Message, silo: int) -> Message:
            made = answer(message, silo)
            return changed(made, torch.neg) if silo == 0 else made

        got = self.play(strategy_of("ddim constant", 6), hostile)
        without = final(strategy_of("ddim constant"), absent=lambda number, silo: silo == 0)
        assert (got - without).abs().max() < 1e-5
        assert "silo-0 left out: class index 0" in caplog.text
        assert "silo-2 left out" not in caplog.text


class TestChunks:
    """Questions that are cut: a sample of 16 numbers takes 80 bytes with its label and timestep."""

    @pytest.mark.parametrize(("window", "rows"), [(1, 5), (4, 3)])
    def test_a_run_does_not_change_by_a_bit(self, window: int, rows: int, tolerate: Tolerate) -> None:
        tolerate(0.05)
        strategy = strategy_of("ddpm posterior", window)
        arrays = begin(strategy, task_of(max_message_mb=rows * 80e-6))
        sizes = [len(EpsilonRequest.from_message(message).labels) for message in requests(strategy, 1, arrays)]
        assert max(sizes) == rows
        assert sum(sizes) == window * (16 + 8 + 16)
        again = strategy_of("ddpm posterior", window)
        chunked = drive(again, begin(again, task_of(max_message_mb=rows * 80e-6)))
        assert torch.equal(samples_of(chunked), final(strategy_of("ddpm posterior", window)))

    def test_a_lost_part_of_an_answer_costs_the_silo_s_say_about_the_classes_in_it(self) -> None:
        """Silo 0 is asked about classes 0 and 1 in the order of the samples, silo 1 about class 2 alone."""
        strategy = strategy_of("ddim constant", levels=1)
        task = task_of(max_message_mb=8 * 80e-6)
        # All of class 0 first: its answers are in the first part, those about class 1 in the second.
        task.labels = torch.arange(3).repeat_interleave(8)
        arrays = begin(strategy, task)
        x, prior = samples_of(arrays), torch.tensor(COUNTS) / torch.tensor(COUNTS).sum(0)
        asked = requests(strategy, 1, arrays)
        mine = [message for message in asked if silo_of(message) == 0]
        assert len(mine) == 2
        replies = [answer(message, silo_of(message)) for message in asked if message is not mine[1]]
        got, _ = moved(strategy, 1, replies)
        weights = prior.clone()
        weights[0, 1], weights[2, 1] = 0.0, 1.0
        shares = weights[:, task.labels][..., None, None, None]
        epsilon = sum(shares[k] * exact(k, x, 999, task.labels) for k in range(3))
        alpha = float(ALPHAS[999])
        clean = ((x - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5).clamp(-1, 1)
        torch.testing.assert_close(samples_of(got), clean, rtol=0, atol=1e-2)

    def test_a_class_with_a_lost_part_of_its_only_answer_waits(self) -> None:
        strategy = strategy_of("ddim constant", 3)
        arrays = begin(strategy, task_of(max_message_mb=5 * 80e-6))
        asked = requests(strategy, 1, arrays)
        mine = [message for message in asked if silo_of(message) == 1]
        assert len(mine) == 3 * math.ceil(8 / 5)
        replies = [answer(message, silo_of(message)) for message in asked if message is not mine[-1]]
        after, metrics = moved(strategy, 1, replies)
        still = (samples_of(after) == samples_of(arrays)).flatten(1).all(1)
        assert still.tolist() == (LABELS == 2).tolist()
        assert metrics["waiting-samples"] == 8

    def test_parts_count_as_one_silo(self) -> None:
        strategy = strategy_of("ddim constant")
        arrays = begin(strategy, task_of(max_message_mb=80e-6, min_replies=2))
        asked = requests(strategy, 1, arrays)
        replies = [answer(message, 0) for message in asked if silo_of(message) == 0]
        assert len(replies) == 16
        with pytest.raises(RunError, match="1 usable answers, 2 needed"):
            strategy.aggregate_train(1, replies)
