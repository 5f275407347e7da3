"""What all averaging strategies share: which answers count, in which order, and what arguments are refused."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Message, MetricRecord
from hand_made_models import (
    AVERAGING,
    BUFFER,
    Model,
    answers,
    assert_equal,
    begun,
    gather,
    model,
    near,
    play,
    send,
)

from fedsynth.errors import RunError, UserError
from fedsynth.messages import transport
from strategies import STRATEGIES
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM

SILOS = 8
COUNTS = [40, 1, 7, 300, 25, 25, 90, 3]
OPTIONS: dict[str, dict[str, Any]] = {
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 2},
    "bulyan": {"num_malicious_nodes": 1},
}
LAYER = "conv_in.weight"


@pytest.fixture(autouse=True)
def no_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedDDPM's correction needs an auxiliary set, and is tested with one elsewhere."""
    monkeypatch.setattr(FedDDPM, "correct", lambda self, server_round, arrays: arrays)


def build(name: str) -> AveragingStrategy:
    strategy = STRATEGIES[name](**OPTIONS.get(name, {}))
    assert isinstance(strategy, AveragingStrategy)
    return strategy


def first_round(name: str) -> tuple[AveragingStrategy, list[Message]]:
    """A strategy that has sent its first round, and what eight silos answer."""
    strategy = build(name)
    requests = send(strategy, 1, model(0), range(100, 100 + SILOS))
    return strategy, answers(requests, [near(model(0), 10 + k) for k in range(SILOS)], COUNTS)


HEADER = transport.encode(torch.zeros(5, 4)).data
SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "not finite": ({LAYER: torch.full((5, 4), math.nan)}, f"layer {LAYER} is not finite"),
    "missing layer": ({LAYER: None}, f"layers ['{LAYER}'] are missing or unknown"),
    "unknown layer": ({"x": torch.zeros(1)}, "layers ['x'] are missing or unknown"),
    "shape": ({LAYER: torch.zeros(4, 5)}, "shape (4, 5), not (5, 4)"),
    "whole numbers": ({LAYER: torch.zeros(5, 4).long()}, f"layer {LAYER} holds int64 numbers, not floating-point"),
    "no images": ({"num-examples": 0}, "= 0: must be a whole number from 1 to max-silo-images = 1000000"),
    "too many images": ({"num-examples": 1_000_001}, "num-examples = 1000001: must be"),
    "half an image": ({"num-examples": 1.5}, "num-examples = 1.5: must be"),
    "loss": ({"loss": math.nan}, "loss = nan: must be"),
    "seconds": ({"seconds": -1e9}, "seconds = -1000000000.0: must be"),
    "no metrics": ({"metrics": None}, "num-examples"),
    "no weights": ({"arrays": None}, "arrays"),
    "text": ({LAYER: b"no array at all"}, "array cannot be read"),
    "cut short": ({LAYER: HEADER[:-1]}, "array cannot be read"),
    "other shape inside": ({LAYER: HEADER.replace(b"(5, 4)", b"(4, 5)")}, "claims to be float32, but holds"),
}
"""What is changed in an answer, and what the log says of it."""


def spoil(message: Message, changes: dict[str, Any]) -> None:
    """Replace layers or their bytes, and metrics; None: leave a layer or a record out."""
    record = transport.array_record(message, "arrays")
    for name, value in changes.items():
        if name in message.content:
            del message.content[name]
        elif value is None:
            del record[name]
        elif isinstance(value, torch.Tensor):
            record[name] = transport.encode(value)
        elif isinstance(value, bytes):
            record[name] = Array(dtype="float32", shape=(5, 4), stype=record[name].stype, data=value)
        else:
            message.content.metric_records["metrics"][name] = value


def assert_left_out(name: str, spoilt: str, log: pytest.LogCaptureFixture) -> Model:
    """The spoilt answer is named once, and the others are combined as if it had never come; return their weights."""
    changes, said = SPOILT[spoilt]
    strategy, replies = first_round(name)
    # FedDiffuse asks some silos for the other half.
    victim = next(k for k in range(3, SILOS) if LAYER in transport.array_record(replies[k], "arrays"))
    spoil(replies[victim], changes)
    found, metrics = gather(strategy, 1, replies)
    assert said in log.text
    assert log.text.count(" left out: ") == log.text.count(f"silo-{victim}") == 1
    expected, expected_metrics = first_without(name, victim)
    assert_equal(found, expected)
    assert metrics == expected_metrics
    return found


def first_without(name: str, silo: int | None) -> tuple[Model, MetricRecord]:
    strategy, replies = first_round(name)
    return gather(strategy, 1, [reply for k, reply in enumerate(replies) if k != silo])


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_bad_answer_is_left_out_by_name_and_changes_no_bit(spoilt: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_left_out("fedavg", spoilt, caplog)


@pytest.mark.parametrize("name", AVERAGING)
def test_every_strategy_leaves_bad_answers_out_and_lets_good_ones_count(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = [assert_left_out(name, "not finite", caplog), *(first_without(name, k)[0] for k in range(SILOS))]
    whole = first_without(name, None)[0]
    assert any(not torch.equal(found[layer], whole[layer]) for found in lacking for layer in whole)


def test_believed_numbers_of_images_are_bounded_by_the_configuration() -> None:
    strategy = FedAvg()
    begun(strategy, range(4), **{"max-silo-images": 25})
    replies = answers(send(strategy, 1, model(0)), [near(model(0), k) for k in range(4)], [1, 24, 25, 26])
    assert gather(strategy, 1, replies)[1]["silos"] == 3


def test_no_usable_answer_gives_nothing() -> None:
    strategy = FedAvg()
    replies = answers(send(strategy, 1, model(0), [10, 20]), [model(1), model(2)], [0, 0])
    assert strategy.aggregate_train(1, replies) == (None, None)


def test_half_of_those_asked_must_answer() -> None:
    for counts in ([1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]):
        strategy = FedAvg(fraction_train=0.6)
        begun(strategy, range(10))
        replies = answers(send(strategy, 1, model(0)), [near(model(0), k) for k in range(6)], counts)
        if sum(counts) == 3:
            assert gather(strategy, 1, replies)[1]["silos"] == 3
        else:
            with pytest.raises(RunError, match=r"2 usable answers, 3 needed: silo-\d: num-examples"):
                strategy.aggregate_train(1, replies)


def wild_models(number: int) -> list[Model]:
    """Weights from 1e-13 to 1e5 that cancel in pairs: sums depend on their order even in double precision."""
    source = np.random.default_rng(number)
    sizes = [
        {layer: 10.0 ** source.uniform(-13, 5, value.shape) for layer, value in model(0).items()} for _ in range(4)
    ]
    return [
        {layer: torch.tensor(sign * size, dtype=torch.float32) for layer, size in one.items()}
        | {BUFFER: torch.tensor([k, int(10 * sign)])}
        for sign in (1.0, -1.0)
        for k, one in enumerate(sizes)
    ]


@pytest.mark.parametrize("name", AVERAGING)
def test_order_of_answers_changes_no_bit(name: str) -> None:
    results = []
    for seed in range(3):
        strategy, current, source = build(name), model(0, 1e-8), random.Random(seed)
        for number in (1, 2):
            replies = answers(send(strategy, number, current, range(50, 58)), wild_models(number), [3] * 8)
            current, _ = gather(strategy, number, source.sample(replies, 8) if seed else replies)
        results.append(current)
    for other in results[1:]:
        assert_equal(other, results[0])
    unsorted = torch.stack([one[LAYER] for one in wild_models(1)]).double()
    sums = [sum(unsorted[k] / 8 for k in order).float() for order in (range(8), (0, 4, 1, 5, 2, 6, 3, 7))]
    assert not torch.equal(*sums), "the test must be able to fail"


@pytest.mark.parametrize("name", AVERAGING)
def test_answers_equal_to_the_global_weights_leave_them_as_they_are(name: str) -> None:
    strategy = build(name)
    for number in (1, 2, 3):
        assert_equal(play(strategy, number, model(4), [model(4)] * SILOS, COUNTS), model(4))


@pytest.mark.parametrize("name", AVERAGING)
def test_whole_numbers_stay_whole_in_half_precision(name: str) -> None:
    strategy = build(name)
    begun(strategy, range(SILOS), **{"wire-dtype": "float16"})
    large = {BUFFER: torch.tensor([2**40 + 1, -(2**31) - 7])}
    start = {layer: value if layer == BUFFER else value.half().float() for layer, value in model(0).items()} | large
    requests = send(strategy, 1, start)
    sent = transport.array_record(requests[0], "arrays")
    assert {array.dtype for layer, array in sent.items() if layer != BUFFER} == {"float16"}
    found, _ = gather(strategy, 1, answers(requests, [start] * SILOS, COUNTS))
    assert {value.dtype for layer, value in found.items() if layer != BUFFER} == {torch.float32}
    assert_equal({BUFFER: found[BUFFER]}, large)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("fedavg", "num_rounds", 0),
        ("fedavg", "sample_from", "average"),
        ("fedavg", "server_ema_decay", 1.0),
        ("fedavg", "fraction_train", 1.01),
        ("krum", "num_malicious_nodes", -1),
        ("fedtrimmedavg", "beta", 0.5),
        ("fedavgm", "server_learning_rate", 0.0),
        ("fedadam", "eta", math.inf),
        ("fedadam", "beta_1", math.nan),
        ("fedprox", "proximal_mu", -0.01),
        ("feddiffuse", "feddiffuse_method", "uspilt"),
    ],
)
def test_arguments_out_of_range_are_refused_by_their_key(name: str, argument: str, value: float | str) -> None:
    with pytest.raises(UserError, match=f"{argument.replace('_', '-')}.*{value}"):
        STRATEGIES[name](**{argument: value})
