from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from hand_made import StubGrid, error_reply, reply

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.averaging.fedavg import FedAvg
from strategies.base import Outcome, Task
from strategies.conversation.census import Census

NODES = [30, 10, 20]


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer{k}": torch.randn(5, 4, generator=generator) for k in range(3)}
    return {**weights, "count": torch.randint(1000, (2,), generator=generator)}


def requests_of(strategy: FedAvg, weights: dict[str, torch.Tensor], **config: Any) -> list[Message]:
    record = wire.encode_tensors(weights)
    return list(strategy.configure_train(1, record, ConfigRecord(config), StubGrid(NODES)))


def answers(requests: list[Message], models: list[dict[str, torch.Tensor]], counts: list[int]) -> list[Message]:
    triples = zip(requests, models, counts, strict=True)
    return [
        reply(request, wire.ARRAYS, weights, partition=k, num_examples=count, loss=float(k), seconds=0.5)
        for k, (request, weights, count) in enumerate(triples)
    ]


def aggregate(strategy: FedAvg, replies: list[Message]) -> dict[str, torch.Tensor]:
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return wire.decode_tensors(arrays)


def test_every_node_gets_the_weights_and_the_round() -> None:
    requests = requests_of(FedAvg(), model(0), key=5)
    assert [message.metadata.dst_node_id for message in requests] == sorted(NODES)
    for message in requests:
        assert message.metadata.message_type == "train"
        assert dict(message.content.config_records[wire.CONFIG]) == {"key": 5, "server-round": 1}
        sent = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
        assert all(torch.equal(sent[name], value) for name, value in model(0).items())


def test_average_agrees_with_a_transcription_in_float64() -> None:
    strategy, models, counts = FedAvg(), [model(seed) for seed in (1, 2, 3)], [7, 1, 432]
    arrays, metrics = strategy.aggregate_train(1, answers(requests_of(strategy, model(0)), models, counts))
    assert arrays is not None
    assert metrics is not None
    for name, value in wire.decode_tensors(arrays).items():
        exact = np.zeros(value.shape)
        for weights, count in zip(models, counts, strict=True):
            exact += count / sum(counts) * weights[name].numpy().astype(np.float64)
        assert value.dtype == models[0][name].dtype
        expected = np.round(exact) if name == "count" else exact
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7, atol=1e-12)
    assert metrics["num-examples"] == 440
    assert metrics["loss"] == pytest.approx((0 * 7 + 1 * 1 + 2 * 432) / 440)
    assert metrics["client-seconds"] == pytest.approx(1.5)


def test_order_of_answers_does_not_change_a_bit() -> None:
    results = []
    for order in itertools.permutations(range(3)):
        strategy = FedAvg()
        # Three numbers of such sizes sum differently in float64 in another order.
        models = [{"w": torch.full((1000,), value, dtype=torch.float64)} for value in (1e16, 1.0, -1e16)]
        replies = answers(requests_of(strategy, models[0]), models, [3, 3, 3])
        results.append(aggregate(strategy, [replies[k] for k in order])["w"])
    assert all(torch.equal(results[0], other) for other in results)


def test_identical_answers_give_those_weights_and_keep_integer_buffers() -> None:
    strategy = FedAvg()
    average = aggregate(strategy, answers(requests_of(strategy, model(0)), [model(4)] * 3, [17, 3, 291]))
    assert all(torch.equal(average[name], value) for name, value in model(4).items())
    assert average["count"].dtype == torch.int64


def test_answer_in_double_precision_does_not_change_the_model_s() -> None:
    strategy = FedAvg()
    wide = {name: tensor.double() if name != "count" else tensor for name, tensor in model(1).items()}
    average = aggregate(strategy, answers(requests_of(strategy, model(0)), [wide, model(2), model(3)], [1, 1, 2]))
    assert {name: tensor.dtype for name, tensor in average.items()} == {k: v.dtype for k, v in model(0).items()}
    exact = (model(1)["layer0"].double() + model(2)["layer0"].double() + 2 * model(3)["layer0"].double()) / 4
    np.testing.assert_allclose(average["layer0"].numpy(), exact.numpy(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"layer0": torch.full((5, 4), torch.nan)}, "layer layer0 is not finite"),
        ({"layer1": torch.zeros(5)}, r"layer layer1 has shape (5,), not (5, 4)"),
        ({"extra": torch.zeros(1)}, "layers ['extra'] are missing or unknown"),
    ],
)
def test_unusable_answer_is_left_out_by_name(
    broken: dict[str, torch.Tensor], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FedAvg()
    requests = requests_of(strategy, model(0))
    replies = answers(requests, [model(1), {**model(2), **broken}, model(3)], [10, 10, 30])
    average = aggregate(strategy, replies)
    expected = 0.25 * model(1)["layer0"].double() + 0.75 * model(3)["layer0"].double()
    np.testing.assert_allclose(average["layer0"].numpy(), expected.numpy(), rtol=1e-7, atol=1e-12)
    assert f"silo-1 left out: {said}" in caplog.text


@pytest.mark.parametrize("count", [0, -5, 2.5, None])
def test_answer_without_a_proper_number_of_examples_is_left_out(
    count: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FedAvg()
    first, second, _ = requests_of(strategy, model(0))
    metrics = {} if count is None else {"num_examples": count}
    bad = reply(first, wire.ARRAYS, model(1), partition=0, **metrics)
    good = reply(second, wire.ARRAYS, model(2), partition=1, num_examples=3)
    assert torch.equal(aggregate(strategy, [bad, good])["layer0"], model(2)["layer0"])
    assert "silo-0 left out: num-examples" in caplog.text


def test_no_usable_answer_gives_nothing() -> None:
    strategy = FedAvg()
    replies = answers(requests_of(strategy, model(0)), [{"w": torch.zeros(1)}] * 3, [1, 1, 1])
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert strategy.aggregate_train(1, [error_reply(requests_of(strategy, model(0))[0], "disk full")]) == (None, None)


def small_task(**changes: Any) -> Task:
    config = RunConfig.from_run_config({"block-out-channels": "8,8", "strategy": "fedavg", **changes})
    spec = ImageSpec(1, 8, ("a", "b"))
    return Task(config, spec, Census.unknown(NODES, 2), torch.tensor([0, 1]))


def begin(strategy: FedAvg, **changes: Any) -> tuple[Task, ArrayRecord]:
    task = small_task(**changes)
    return task, strategy.begin(task, StubGrid([]))


@pytest.mark.parametrize("rounds", [1, 4, 7, 30])
def test_rounds_share_all_train_steps(rounds: int) -> None:
    strategy = FedAvg(num_rounds=rounds)
    task, arrays = begin(strategy, **{"train-steps": 30})
    steps = []
    for number in range(1, rounds + 1):
        sent = list(strategy.configure_train(number, arrays, strategy.train_config(task), StubGrid([])))
        assert [message.metadata.dst_node_id for message in sent] == sorted(NODES)
        steps.append(int(sent[0].content.config_records[wire.CONFIG]["steps"]))
    assert sum(steps) == 30
    assert max(steps) - min(steps) <= 1
    assert min(steps) >= 1


@pytest.mark.parametrize(
    ("settings", "sound", "enough"), [({}, 2, True), ({}, 1, False), ({"min-replies": 1}, 1, True)]
)
def test_a_round_needs_half_of_the_silos_unless_told_otherwise(
    settings: dict[str, int], sound: int, enough: bool
) -> None:
    strategy = FedAvg()
    task, arrays = begin(strategy, **settings)
    sent = list(strategy.configure_train(1, arrays, strategy.train_config(task), StubGrid([])))
    weights = wire.decode_tensors(arrays)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    replies = [reply(message, wire.ARRAYS, weights, num_examples=2) for message in sent[:sound]]
    replies += [reply(message, wire.ARRAYS, broken, num_examples=2) for message in sent[sound:2]]
    replies.append(error_reply(sent[2], "silo-2: out of memory"))
    if enough:
        average = aggregate(strategy, replies)
        assert all(torch.equal(average[name], value) for name, value in weights.items())
    else:
        with pytest.raises(RunError, match=r"1 usable answers, 2 needed: node-\d+: layer .* is not finite"):
            strategy.aggregate_train(1, replies)


def test_half_precision_on_the_wire_and_single_on_the_server() -> None:
    strategy = FedAvg()
    task, arrays = begin(strategy, **{"wire-dtype": "float16"})
    message = next(iter(strategy.configure_train(1, arrays, strategy.train_config(task), StubGrid([]))))
    sent = wire.array_record(message, wire.ARRAYS)
    assert {array.dtype for array in sent.values()} == {"float16"}
    assert {array.dtype for array in arrays.values()} == {"float32"}


def test_average_over_rounds_follows_the_closed_form() -> None:
    strategy = FedAvg(sample_from="ema", server_ema_decay=0.75)
    task, arrays = begin(strategy, **{"min-replies": 1})
    name = next(iter(arrays))
    values = []
    for number, value in enumerate((1.0, 3.0, -2.0), start=1):
        weights = {key: torch.full_like(tensor, value) for key, tensor in wire.decode_tensors(arrays).items()}
        sent = list(strategy.configure_train(number, arrays, strategy.train_config(task), StubGrid([])))
        strategy.aggregate_train(number, [reply(sent[0], wire.ARRAYS, weights, num_examples=1)])
        values.append(value)
    expected = 0.75 * (0.75 * values[0] + 0.25 * values[1]) + 0.25 * values[2]
    assert strategy._average is not None
    np.testing.assert_allclose(strategy._average[name].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("sample_from", "value"), [("raw", 3.0), ("ema", 2.0)])
def test_chosen_weights_are_sampled(sample_from: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[dict[str, torch.Tensor]] = []

    def draw(task: Task, weights: dict[str, torch.Tensor]) -> Outcome:
        sampled.append(weights)
        return Outcome(np.zeros((2, 8, 8, 1), np.uint8), np.arange(2))

    monkeypatch.setattr("strategies.averaging.base.draw_from_model", draw)
    strategy = FedAvg(sample_from=sample_from, server_ema_decay=0.5)
    task, arrays = begin(strategy, **{"min-replies": 1})
    last: ArrayRecord | None = None
    for number, filling in ((1, 1.0), (2, 3.0)):
        weights = {key: torch.full_like(tensor, filling) for key, tensor in wire.decode_tensors(arrays).items()}
        sent = list(strategy.configure_train(number, arrays, strategy.train_config(task), StubGrid([])))
        answered = reply(sent[0], wire.ARRAYS, weights, num_examples=1, loss=10.0 - number)
        last, _ = strategy.aggregate_train(number, [answered])
    assert last is not None
    outcome = strategy.finish(task, last)
    assert all((tensor == value).all() for tensor in sampled[0].values())
    assert outcome.curves == {"mean over silos, by round": [(1, 9.0), (2, 8.0)]}


def test_raw_sampling_keeps_no_average(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    strategy = FedAvg()
    aggregate(strategy, answers(requests_of(strategy, model(0)), [model(1)] * 3, [1, 1, 1]))
    assert strategy._average is None
