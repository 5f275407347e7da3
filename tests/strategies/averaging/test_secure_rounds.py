"""Averaging whose server sees sums of updates only: real silos' code, real messages, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from summed_rounds import LostError, after_rounds, begin, largest_difference

from fedsynth.config import RunConfig, Scalar
from fedsynth.diffusion import PARTS, part_of
from fedsynth.errors import RunError, UserError
from fedsynth.messages import MaskedAnswer, MaskedTrainRequest, TrainRequest
from strategies import build_strategy
from strategies.averaging.summed import sum_weights
from strategies.conversation.census import Census, Member

ROUNDING = 1e-6
"""Single precision, once through a round."""


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"strategy": "fedadam"},
        {"strategy": "feddiffuse", "num-clients": 6},
        {"strategy": "feddiffuse", "feddiffuse-method": "udec", "num-clients": 3},
        {"wire-dtype": "float16", "num-clients": 3},
    ],
    ids=["fedavg", "fedadam", "usplit", "udec", "float16"],
)
def test_a_round_is_that_of_a_server_that_sees_every_update(method: dict[str, Scalar], tmp_path: Path) -> None:
    plain, _ = begin(tmp_path / "plain", **method)
    run, grid = begin(tmp_path / "sums", secure_aggregation=True, **method)
    before = {name: tensor.clone() for name, tensor in after_rounds(run, 0).items()}
    after = after_rounds(run)
    # In float16 silos of a plain run round what they answer, too.
    assert largest_difference(after, after_rounds(plain)) < (2e-3 if "wire-dtype" in method else ROUNDING)
    assert largest_difference(after, before) > 100 * ROUNDING
    assert grid.asked(TrainRequest.kind) == []
    for _, _, reply in (row for row in grid.crossed if row[0] == MaskedTrainRequest.kind):
        numbers = MaskedAnswer.from_message(reply).masked.numpy().view(np.uint32)
        assert len(numbers) == sum(tensor.numel() for tensor in after.values())
        # Updates in fixed point would all lie near 0 or near 2**32.
        assert 0.45 < numbers.mean() / 2**32 < 0.55
    if method.get("feddiffuse-method") == "udec":
        assert {part_of(name) for name in after} == {PARTS[2]}


def test_a_whole_run_says_what_is_no_longer_screened_and_tells_no_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = begin(tmp_path, secure_aggregation=True, num_clients=3)
    rounds = []
    run.rounds(rounds.append)
    assert "the server sees no single update" in caplog.text
    outcome = run.strategy.finish(run.task, rounds[-1].arrays)
    assert any("sums of the silos' updates and no single one" in note for note in outcome.notes)
    assert [dict(done.metrics)["silos"] for done in rounds] == [3, 3]
    assert all("loss" not in done.metrics for done in rounds)


def test_who_drops_out_is_left_out_of_this_sum_and_of_all_later_ones(tmp_path: Path) -> None:
    def lose(kind: str, silo: int, question: Message) -> None:
        if kind in (TrainRequest.kind, MaskedTrainRequest.kind) and silo == 2:
            raise LostError

    plain, _ = begin(tmp_path / "plain", lose)
    run, grid = begin(tmp_path / "sums", lose, secure_aggregation=True)
    assert largest_difference(after_rounds(run, 2), after_rounds(plain, 2)) < 10 * ROUNDING
    assert grid.asked(MaskedTrainRequest.kind) == [0, 1, 2, 3, 0, 1, 3]
    assert run.strategy.state_dict()["members"] == ["silo-0", "silo-1", "silo-3"]


def test_with_too_few_left_the_run_ends_and_says_so(tmp_path: Path) -> None:
    def lose(kind: str, silo: int, question: Message) -> None:
        if kind == MaskedTrainRequest.kind and silo == 2:
            raise LostError

    run, _ = begin(tmp_path, lose, secure_aggregation=True, num_clients=3)
    with pytest.raises(RunError, match="no secure sum at round 1 in 3 attempts: 2 usable answers, 3 needed"):
        after_rounds(run)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped_and_repeats_no_round(tmp_path: Path) -> None:
    run, _ = begin(tmp_path / "a", secure_aggregation=True, num_clients=3)
    first, _ = run.strategy.run_round(1, run.arrays, run.exchange)
    saved = run.strategy.state_dict()
    second, _ = run.strategy.run_round(2, first, run.exchange)

    # The crash came after the answers to round 2 and before its checkpoint: asked for again, they are the same.
    again, _ = begin(tmp_path / "a", secure_aggregation=True, num_clients=3)
    again.strategy.load_state_dict(saved)
    resumed, _ = again.strategy.run_round(2, first, again.exchange)
    assert all(bool(resumed[name].data == second[name].data) for name in second)
    # A server that goes back further is refused, by the silos' disks.
    with pytest.raises(RunError, match="step 1 after step 2: steps must rise"):
        again.strategy.run_round(1, run.arrays, again.exchange)


def census_of(*counts: int) -> Census:
    return Census(Member(k, f"silo-{k}", count, [count]) for k, count in enumerate(counts))


def test_weights_follow_the_numbers_of_images_and_none_is_above_half() -> None:
    everything = [[True]] * 4
    assert torch.allclose(sum_weights(census_of(10, 20, 30, 40), everything)[:, 0], torch.tensor([0.1, 0.2, 0.3, 0.4]))
    shared = sum_weights(census_of(70, 10, 10, 10), everything)[:, 0]
    assert torch.allclose(shared, torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]))
    halves = sum_weights(census_of(10, 20, 30, 40), [[True, False], [True, True], [False, True], [True, True]])
    assert torch.allclose(halves.sum(0), torch.ones(2))
    assert (halves == 0).tolist() == [[False, True], [False, False], [True, False], [False, False]]


def refused(**changes: Scalar) -> str:
    given: dict[str, Scalar] = {"secure-aggregation": True, **{k.replace("_", "-"): v for k, v in changes.items()}}
    with pytest.raises(UserError) as error:
        build_strategy(RunConfig.from_run_config(given))
    return str(error.value)


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"])
def test_rules_that_compare_answers_are_refused_with_the_reason_and_a_way_out(strategy: str) -> None:
    said = refused(strategy=strategy)
    assert "its rule compares the silos' single answers, which the server does not see; set strategy = 'fedavg'" in said


def test_other_settings_that_sums_do_not_go_with_are_refused() -> None:
    for strategy in ("fedddpm", "fedddpm-plus"):
        assert "every silo uploads a model of its own" in refused(strategy=strategy)
    assert "would differ by its answer; set fraction-train = 1" in refused(strategy="fedavg", fraction_train=0.5)
    assert "num-clients = 2 with secure-aggregation" in refused(strategy="fedavg", num_clients=2)
    halves = refused(strategy="feddiffuse", num_clients=5)
    assert "must be >= 6, 3 for each half of the network; set feddiffuse-method = 'full'" in halves
    assert "whether sums are enough for it is not known" in refused(strategy="mine:Own")
