"""What averaging believes of an answer, the same for every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Array, Message, MetricRecord
from hand_made import StubGrid, error_reply
from hand_made_models import (
    AVERAGING,
    BUFFER,
    answer,
    answers,
    assert_equal,
    gather,
    model,
    near,
    send,
)

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM
from strategies.averaging.updates import Update, mean_metrics, read_update
from strategies.base import Task
from strategies.conversation.census import Census, Member

Spoil = Callable[[Message], Message]

SILOS = 8
COUNTS = [40, 1, 7, 300, 25, 25, 90, 3]
HYPER: dict[str, dict[str, Any]] = {
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 2},
    "bulyan": {"num_malicious_nodes": 1},
}


@pytest.fixture(autouse=True)
def no_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedDDPM's correction needs an auxiliary set, and is tested with one elsewhere."""
    monkeypatch.setattr(FedDDPM, "correct", lambda self, server_round, arrays: arrays)


def build(name: str) -> AveragingStrategy:
    strategy = STRATEGIES[name](**HYPER.get(name, {}))
    assert isinstance(strategy, AveragingStrategy)
    return strategy


def exchange(name: str) -> tuple[AveragingStrategy, list[Message]]:
    """A strategy that has sent its first round, and what eight silos answer."""
    strategy = build(name)
    requests = send(strategy, 1, model(0), range(100, 100 + SILOS))
    return strategy, answers(requests, [near(model(0), 10 + k) for k in range(SILOS)], COUNTS)


def change(edit: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    """Change the weights of an answer."""

    def spoil(message: Message) -> Message:
        weights = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
        edit(weights)
        message.content[wire.ARRAYS] = wire.encode_tensors(weights)
        return message

    return spoil


def fill(value: float, dtype: torch.dtype = torch.float32) -> Spoil:
    """Put one bad value into a layer."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights["conv_in.weight"] = weights["conv_in.weight"].to(dtype)
        weights["conv_in.weight"][2, 1] = value

    return change(edit)


def claim(**numbers: float) -> Spoil:
    """Change the metrics of an answer."""

    def spoil(message: Message) -> Message:
        changed = {**wire.metrics(message), **{name.replace("_", "-"): value for name, value in numbers.items()}}
        message.content[wire.METRICS] = MetricRecord(changed)
        return message

    return spoil


def without_metrics(message: Message) -> Message:
    del message.content[wire.METRICS]
    return message


def without_weights(message: Message) -> Message:
    message.content[wire.WEIGHTS] = message.content.pop(wire.ARRAYS)
    return message


def unreadable(**changes: Any) -> Spoil:
    """Bytes that are not the array they claim to be."""

    def spoil(message: Message) -> Message:
        record = wire.array_record(message, wire.ARRAYS)
        good = record["conv_in.weight"]
        fields = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data}
        record["conv_in.weight"] = Array(**{**fields, **changes})
        return message

    return spoil


FEW = "must be a whole number from 1 to max-silo-images = 1000000"
HEADER = wire.encode(torch.zeros(5, 4)).data
SPOILT: dict[str, tuple[Spoil, str]] = {
    "nan": (fill(math.nan), "layer conv_in.weight is not finite"),
    "inf": (fill(math.inf), "layer conv_in.weight is not finite"),
    "-inf": (fill(-math.inf), "layer conv_in.weight is not finite"),
    "inf in half precision": (fill(1e6, torch.float16), "layer conv_in.weight is not finite"),
    "too large for single precision": (fill(1e39, torch.float64), "layer conv_in.weight is not finite"),
    "missing layer": (change(lambda w: w.pop("conv_in.weight")), "layers ['conv_in.weight'] are missing or unknown"),
    "unknown layer": (change(lambda w: w.update(x=torch.zeros(1))), "layers ['x'] are missing or unknown"),
    "no layer": (change(dict.clear), "are missing or unknown"),
    "shape": (change(lambda w: w.update({"conv_in.weight": torch.zeros(4, 5)})), "shape (4, 5), not (5, 4)"),
    "one number": (change(lambda w: w.update({"conv_in.weight": torch.zeros(())})), "shape (), not (5, 4)"),
    "whole numbers": (
        change(lambda w: w.update({"conv_in.weight": torch.zeros(5, 4, dtype=torch.int64)})),
        "layer conv_in.weight holds int64 numbers, not floating-point",
    ),
    "complex numbers": (
        change(lambda w: w.update({"conv_in.weight": torch.zeros(5, 4, dtype=torch.complex64)})),
        "layer conv_in.weight holds complex64 numbers, not floating-point",
    ),
    "fractions": (
        change(lambda w: w.update({BUFFER: w[BUFFER].float()})),
        f"layer {BUFFER} holds floating-point numbers, not int64",
    ),
    "no images": (claim(num_examples=0), f"num-examples = 0: {FEW}"),
    "negative": (claim(num_examples=-1), f"num-examples = -1: {FEW}"),
    "half an image": (claim(num_examples=1.5), f"num-examples = 1.5: {FEW}"),
    "nan images": (claim(num_examples=math.nan), f"num-examples = nan: {FEW}"),
    "a million and one": (claim(num_examples=1_000_001), f"num-examples = 1000001: {FEW}"),
    "nan loss": (claim(loss=math.nan), "loss = nan: must be finite"),
    "infinite loss": (claim(loss=-math.inf), "loss = -inf: must be finite"),
    "nan seconds": (claim(seconds=math.nan), "seconds = nan: must be >= 0 and finite"),
    "negative seconds": (claim(seconds=-1e9), "seconds = -1000000000.0: must be >= 0 and finite"),
    "no metrics": (without_metrics, f"num-examples = nan: {FEW}"),
    "no weights": (without_weights, "there is no array record 'arrays'"),
    "no bytes": (unreadable(data=b""), "array cannot be read"),
    "text": (unreadable(data=b"no array at all"), "array cannot be read"),
    "cut short": (unreadable(data=HEADER[:-1]), "array cannot be read"),
    "pickled": (unreadable(stype="pickle"), "array cannot be read: serialised as 'pickle'"),
    "objects": (unreadable(data=HEADER.replace(b"'<f4'", b"'|O' ")), "array cannot be read"),
    "other shape inside": (
        unreadable(data=HEADER.replace(b"(5, 4)", b"(4, 5)")),
        "layer conv_in.weight has shape (4, 5), not (5, 4)",
    ),
}


def a_silo_that_was_asked_for_everything_spoilt(replies: list[Message]) -> int:
    return next(k for k in (3, 4, 5, 6, 7) if "conv_in.weight" in wire.array_record(replies[k], wire.ARRAYS))


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("name", AVERAGING)
def test_one_bad_answer_is_left_out_by_name_and_changes_no_bit(
    name: str, spoilt: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, said = SPOILT[spoilt]
    strategy, replies = exchange(name)
    victim = a_silo_that_was_asked_for_everything_spoilt(replies)
    replies[victim] = spoil(replies[victim])
    found, metrics = gather(strategy, 1, replies)
    assert f"silo-{victim} left out: " in caplog.text
    assert said in caplog.text
    assert caplog.text.count(" left out: ") == 1
    alone, others = exchange(name)
    expected, expected_metrics = gather(alone, 1, [reply for k, reply in enumerate(others) if k != victim])
    assert_equal(found, expected)
    assert metrics == expected_metrics


@pytest.mark.parametrize("name", AVERAGING)
def test_an_error_is_left_out_with_its_reason_and_changes_no_bit(name: str, caplog: pytest.LogCaptureFixture) -> None:
    strategy, replies = exchange(name)
    request = send(build(name), 1, model(0), range(100, 100 + SILOS))[5]
    found, _ = gather(strategy, 1, [*replies[:5], error_reply(request, "silo-5: OSError: disk gone"), *replies[6:]])
    assert "answer left out: silo-5: OSError: disk gone" in caplog.text
    alone, others = exchange(name)
    assert_equal(found, gather(alone, 1, [*others[:5], *others[6:]])[0])


@pytest.mark.parametrize("name", AVERAGING)
def test_a_sound_answer_would_have_counted(name: str) -> None:
    """Otherwise the tests above would pass with a strategy that ignores everybody."""
    changed = False
    for victim in range(SILOS):
        whole, lacking = exchange(name), exchange(name)
        del lacking[1][victim]
        one, other = (gather(strategy, 1, replies)[0] for strategy, replies in (whole, lacking))
        changed |= not all(torch.equal(one[layer], other[layer]) for layer in one)
    assert changed


def test_everything_that_is_read() -> None:
    (request,) = send(FedAvg(), 1, model(0), [7])
    update = read_update(answer(request, model(1), 3, 41, loss=0.25, seconds=2.5), None, 41)
    assert (update.node_id, update.order, update.name) == (7, (3, "silo-3"), "silo-3")
    assert (update.num_examples, update.loss, update.seconds) == (41, 0.25, 2.5)
    assert_equal(wire.decode_tensors(update.record), model(1))
    silent = read_update(answer(request, model(1), 3, 1), None, 41)
    assert (silent.loss, silent.seconds) == (None, 0.0)


def update_of(count: int, loss: float | None) -> Update:
    return Update(1, (1, "silo-1"), wire.encode_tensors({}), count, loss, 1.5)


def test_loss_is_weighted_by_the_images_of_those_that_say_it() -> None:
    metrics = mean_metrics([update_of(1, 4.0), update_of(3, 2.0)])
    assert dict(metrics) == {"num-examples": 4, "silos": 2, "loss": 2.5}
    assert mean_metrics([update_of(1, 4.0), update_of(3, None)])["loss"] == 4.0
    assert "loss" not in mean_metrics([update_of(3, None)])


def begun(**changes: Any) -> FedAvg:
    """A strategy that knows its silos, whose node ids run against their order."""
    config = RunConfig.from_run_config({"strategy": "fedavg", "block-out-channels": "4,4", **changes})
    census = Census(Member(60 - k, f"silo-{k}", 9, [9]) for k in range(4))
    strategy = FedAvg()
    strategy.begin(Task(config, ImageSpec(1, 4, ("a",)), census, torch.tensor([0])), StubGrid([]))
    return strategy


@pytest.mark.parametrize(("most", "left"), [(24, 2), (25, 3), (300, 4)])
def test_believed_numbers_of_images_are_bounded_by_the_configuration(most: int, left: int) -> None:
    strategy = begun(**{"max-silo-images": most})
    requests = send(strategy, 1, model(0), [])
    replies = answers(requests, [near(model(0), k) for k in range(4)], [1, 24, 25, 300])
    assert gather(strategy, 1, replies)[1]["silos"] == left


def test_answers_sort_by_the_silo_that_was_asked_whatever_name_it_claims() -> None:
    # Their sum depends on the order even in double precision.
    weights = [{"w": torch.full((9,), value, dtype=torch.float64)} for value in (1e16, 1.0, -1e16, 3.0)]
    results = []
    for claimed in ([0, 1, 2, 3], [0, 0, 0, 0], [3, 2, 0, 1], [3, 1, 2, 0]):
        strategy = begun()
        requests = send(strategy, 1, weights[0], [])
        assert [message.metadata.dst_node_id for message in requests] == [60, 59, 58, 57]
        replies = [answer(requests[k], weights[k], claimed[k], 3) for k in range(4)]
        results.append(gather(strategy, 1, replies[::-1])[0])
    for other in results[1:]:
        assert_equal(other, results[0])


@pytest.mark.parametrize(("min_replies", "enough"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_round_with_fewer_sound_answers_than_asked_for_names_the_first_reason(min_replies: int, enough: bool) -> None:
    strategy = begun(**{"min-replies": min_replies})
    requests = send(strategy, 1, model(0), [])
    replies = answers(requests, [near(model(0), k) for k in range(4)], [1, 0, -3, 1])
    if enough:
        assert gather(strategy, 1, replies)[1]["silos"] == 2
    else:
        with pytest.raises(RunError, match=f"2 usable answers, {min_replies} needed: silo-1: num-examples = 0: must"):
            strategy.aggregate_train(1, replies)
