"""Strategies driven through Flower's own two methods, by somebody who knows nothing of this repository's messages.

A reply is ``Message(content, reply_to=message)`` with an array record ``arrays`` or ``epsilon``, perhaps a record
``metrics``, and perhaps a record ``silo`` that says who answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hand_made_models
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hand_made import StubGrid
from hand_made_models import AVERAGING, Model

from fedsynth.errors import RunError
from strategies import STRATEGIES
from strategies.averaging.fedddpm import FedDDPM

NODES = [70, 11, 52, 48, 33, 96, 25]
COUNTS = [30, 1, 7, 12, 5, 9, 2]
WHO: dict[str, Any] = {
    "partition": lambda k: {"partition-id": k},
    "name": lambda k: {"silo-name": f"clinic-{k}"},
    "node": lambda k: None,
}


@pytest.fixture(autouse=True)
def no_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedDDPM's takes images from the silos' own models."""
    monkeypatch.setattr(FedDDPM, "correct", lambda self, server_round, arrays: arrays)


def trained(message: Message, silo: int) -> ArrayRecord:
    """The weights that were sent, each a little away; of the parts asked for."""
    sent = message.content.array_records["arrays"].to_torch_state_dict()
    parts = message.content.config_records["config"].get("report-parts")
    moved: Model = hand_made_models.near(sent, silo)
    if isinstance(parts, list):
        moved = hand_made_models.select_parts(moved, parts)
    return ArrayRecord({name: Array(value.numpy()) for name, value in moved.items()})


def reply_to(message: Message, silo: int, who: str) -> Message:
    metrics = MetricRecord({"num-examples": COUNTS[silo], "loss": 1.0 + silo})
    content = RecordDict({"arrays": trained(message, silo), "metrics": metrics})
    if (said := WHO[who](silo)) is not None:
        content["silo"] = ConfigRecord(said)
    return Message(content, reply_to=message)


def two_rounds(name: str, order: Sequence[int], who: str) -> tuple[Model, list[float]]:
    """The weights after two rounds, and the losses; ``order`` is that in which answers arrive."""
    strategy, losses = STRATEGIES[name](), []
    arrays: ArrayRecord | None = ArrayRecord(
        {key: Array(value.numpy()) for key, value in hand_made_models.model(0).items()}
    )
    for number in (1, 2):
        assert arrays is not None
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), StubGrid(NODES)))
        assert [message.metadata.dst_node_id for message in messages] == sorted(NODES)
        assert {message.metadata.message_type for message in messages} == {"train"}
        replies = [reply_to(message, silo, who) for silo, message in enumerate(messages)]
        arrays, metrics = strategy.aggregate_train(number, [replies[k] for k in order])
        assert metrics is not None
        losses.append(float(metrics["loss"]))
    assert arrays is not None
    return dict(arrays.to_torch_state_dict()), losses


@pytest.mark.parametrize("name", AVERAGING)
def test_averaging_gives_the_same_bits_whoever_answers_first_and_says_who(name: str) -> None:
    expected, losses = two_rounds(name, range(7), "partition")
    for order, who in (([6, 2, 4, 0, 5, 1, 3], "node"), ([3, 1, 5, 0, 4, 2, 6], "name")):
        got, again = two_rounds(name, order, who)
        hand_made_models.assert_equal(got, expected)
        assert again == losses
    start = hand_made_models.model(0)
    assert list(expected) == list(start)
    assert any(not torch.equal(expected[key], start[key]) for key in start)


@pytest.mark.parametrize("name", ["fedavg", "feddiffuse"])
def test_the_mean_goes_by_the_number_of_images(name: str) -> None:
    strategy = STRATEGIES[name](**({"feddiffuse_method": "full"} if name == "feddiffuse" else {}))
    weights = hand_made_models.model(0)
    arrays = ArrayRecord({key: Array(value.numpy()) for key, value in weights.items()})
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), StubGrid(NODES)))
    moved, metrics = strategy.aggregate_train(1, [reply_to(message, k, "node") for k, message in enumerate(messages)])
    models = [hand_made_models.near(weights, k) for k in range(7)]
    assert moved is not None
    assert metrics is not None
    hand_made_models.assert_near(dict(moved.to_torch_state_dict()), hand_made_models.mean_of(models, COUNTS))
    assert metrics["num-examples"] == sum(COUNTS)
    assert metrics["loss"] == pytest.approx(np.average(range(1, 8), weights=COUNTS))


@pytest.mark.parametrize(("order", "who"), [([0, 1, 2], "partition"), ([2, 0, 1], "name"), ([1, 2, 0], "node")])
def test_cooperation_moves_samples_by_the_noise_predictions_under_whatever_name(order: list[int], who: str) -> None:
    strategy = STRATEGIES["dfd"](sampler="ddim", weights="constant", dfd_rounds=1)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    arrays = ArrayRecord({"samples": Array(x.numpy()), "labels": Array(np.array([0, 1, 1, 0]))})
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), StubGrid([9, 4, 6])))
    replies = []
    for k, message in enumerate(messages):
        sent = message.content.array_records["arrays"].to_torch_state_dict()
        content = RecordDict({"epsilon": ArrayRecord({"whatever": Array((0.1 * (k + 1) * sent["samples"]).numpy())})})
        content["metrics"] = MetricRecord({"seconds": 0.5})
        if (said := WHO[who](k)) is not None:
            content["silo"] = ConfigRecord(said)
        replies.append(Message(content, reply_to=message))
    assert [message.metadata.dst_node_id for message in messages] == [4, 6, 9]
    moved, metrics = strategy.aggregate_train(1, [replies[k] for k in order])
    assert moved is not None
    assert metrics is not None
    assert metrics["effective-experts"] == pytest.approx(3.0)
    assert (metrics["timestep"], metrics["client-seconds"]) == (994, 1.5)
    # One step from the level of most noise to the image: x_0 = (x - √(1-ᾱ) ε) / √ᾱ, clipped, with the mean of 0.1 x,
    # 0.2 x and 0.3 x as ε; ᾱ as in Nichol & Dhariwal 2021 (Eq. 17).
    of_step, of_start = ((math.cos((u + 0.008) / 1.008 * math.pi / 2)) ** 2 for u in (0.995, 0))
    alpha_bar = of_step / of_start
    clean = ((x - (1 - alpha_bar) ** 0.5 * 0.2 * x) / alpha_bar**0.5).clamp(-1, 1)
    np.testing.assert_allclose(moved.to_torch_state_dict()["samples"], clean, atol=1e-4)
    assert moved.to_torch_state_dict()["labels"].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("name", ["fedavg", "dfd"])
def test_there_is_nothing_to_aggregate_before_anybody_was_asked(name: str) -> None:
    with pytest.raises(RunError, match="aggregate_train before configure_train"):
        STRATEGIES[name]().aggregate_train(1, [])
