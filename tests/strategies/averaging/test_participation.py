from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from hand_made import StubGrid, error_reply
from hand_made_models import BUFFER, Exact, Model, answer, assert_near, exact, gather, mean_of, model, near, send
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import RunConfig
from fedsynth.diffusion import ClassConditionalDDPMPipeline
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.robust import FedMedian
from strategies.averaging.server_optimizers import FedAdam, FedAvgM
from strategies.base import Task
from strategies.conversation.census import Census, Member

LAYER = {"conv_in.weight": torch.zeros(1)}


def begun(strategy: AveragingStrategy, nodes: list[int], **changes: Any) -> AveragingStrategy:
    """A strategy that knows its silos: silo k is the k-th of ``nodes``."""
    settings = {"strategy": "fedavg", "block-out-channels": "4,4", "num-clients": len(nodes), **changes}
    census = Census(Member(node, f"silo-{k}", 9, [9]) for k, node in enumerate(nodes))
    task = Task(RunConfig.from_run_config(settings), ImageSpec(1, 4, ("a",)), census, torch.tensor([0]))
    strategy.begin(task, StubGrid([]))
    return strategy


def drawn(strategy: AveragingStrategy, nodes: list[int], number: int) -> list[int]:
    """Positions of the silos that are asked in a round."""
    return [nodes.index(message.metadata.dst_node_id) for message in send(strategy, number, LAYER, [])]


def test_the_seed_draws_the_silos_whatever_their_node_ids() -> None:
    several = [list(range(10)), list(range(900, 890, -1)), [2**63 - 7 * k * k for k in range(10)]]
    draws = [
        [drawn(begun(FedAvg(fraction_train=0.4), nodes), nodes, number) for number in range(1, 30)] for nodes in several
    ]
    assert draws[1] == draws[0]
    assert draws[2] == draws[0]


def test_rounds_and_seeds_draw_others() -> None:
    nodes = list(range(10))
    strategy, other = (begun(FedAvg(fraction_train=0.5), nodes, seed=seed) for seed in (0, 1))
    draws = [tuple(drawn(strategy, nodes, number)) for number in range(1, 21)]
    assert len(set(draws)) > 12, "252 possible draws"
    assert sum(one != following for one, following in pairwise(draws)) >= 18
    assert sum(tuple(drawn(other, nodes, number)) != draws[number - 1] for number in range(1, 21)) >= 18


def test_a_draw_depends_on_nothing_but_seed_and_round() -> None:
    nodes = list(range(10))
    strategy = begun(FedAvg(fraction_train=0.5), nodes)
    draws = {number: drawn(strategy, nodes, number) for number in (1, 2, 3)}
    assert {number: drawn(strategy, nodes, number) for number in (3, 1, 2)} == draws
    assert {number: drawn(begun(FedAvg(fraction_train=0.5), nodes), nodes, number) for number in (2, 3, 1)} == draws


def test_silos_and_pairs_of_silos_are_drawn_equally_often() -> None:
    nodes, rounds = list(range(10)), 2000
    strategy = begun(FedAvg(fraction_train=0.3), nodes)
    together = np.zeros((10, 10))
    for number in range(1, rounds + 1):
        chosen = drawn(strategy, nodes, number)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == 3
        together[np.ix_(chosen, chosen)] += 1
    alone, pair = 3 / 10, 3 * 2 / (10 * 9)
    np.testing.assert_allclose(np.diag(together) / rounds, alone, atol=4 * math.sqrt(alone * (1 - alone) / rounds))
    pairs = together[np.triu_indices(10, 1)] / rounds
    np.testing.assert_allclose(pairs, pair, atol=4 * math.sqrt(pair * (1 - pair) / rounds))


@pytest.mark.parametrize("minimum", [1, 2, 7])
@pytest.mark.parametrize("fraction", ["1.0", "0.7", "0.3", "0.29", "0.57", "0.1", "0.01"])
def test_number_of_silos_is_the_share_rounded_down_but_at_least_the_minimum(fraction: str, minimum: int) -> None:
    strategy = FedAvg(fraction_train=float(fraction), min_train_nodes=minimum)
    for silos in (1, 3, 7, 10, 20, 100):
        expected = min(silos, max(minimum, math.floor(Fraction(fraction) * silos)))
        assert strategy.num_participants(silos) == expected
        nodes = list(range(silos))
        assert len(drawn(begun(strategy, nodes), nodes, 3)) == expected


def test_half_of_those_asked_must_answer() -> None:
    nodes = list(range(10))
    strategy = begun(FedAvg(fraction_train=0.6), nodes)
    requests = send(strategy, 1, model(0), [])
    replies = [answer(request, model(1), k) for k, request in enumerate(requests[:3])]
    assert gather(strategy, 1, replies)[1]["silos"] == 3


def momentum_by_hand(rounds: list[list[tuple[Model, int]]], learning_rate: float, momentum: float) -> Exact:
    weights, velocity = exact(model(0)), {name: np.zeros(value.shape) for name, value in exact(model(0)).items()}
    for present in rounds:
        mean = mean_of(*zip(*present, strict=True))
        velocity = {name: momentum * velocity[name] + mean[name] - old for name, old in weights.items()}
        moved = {name: old + learning_rate * velocity[name] for name, old in weights.items()}
        weights = {**moved, BUFFER: np.round(mean[BUFFER])}
    return weights


def adam_by_hand(rounds: list[list[tuple[Model, int]]]) -> Exact:
    weights = exact(model(0))
    first = {name: np.zeros(value.shape) for name, value in weights.items()}
    second = {name: np.full(value.shape, 1e-6) for name, value in weights.items()}
    for present in rounds:
        mean = mean_of(*zip(*present, strict=True))
        for name, old in weights.items():
            first[name] = 0.9 * first[name] + 0.1 * (mean[name] - old)
            second[name] = 0.99 * second[name] + 0.01 * (mean[name] - old) ** 2
        moved = {name: old + 1e-2 * first[name] / (np.sqrt(second[name]) + 1e-3) for name, old in weights.items()}
        weights = {**moved, BUFFER: np.round(mean[BUFFER])}
    return weights


def median_by_hand(rounds: list[list[tuple[Model, int]]]) -> Exact:
    return {name: np.median([exact(weights)[name] for weights, _ in rounds[-1]], axis=0) for name in model(0)}


BY_HAND = {
    "fedavg": (FedAvg, lambda rounds: mean_of(*zip(*rounds[-1], strict=True))),
    "fedmedian": (FedMedian, median_by_hand),
    "fedavgm": (FedAvgM, lambda rounds: momentum_by_hand(rounds, 1.0, 0.9)),
    "fedadam": (FedAdam, adam_by_hand),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_silo_that_misses_two_rounds_takes_part_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    chosen, by_hand = BY_HAND[name]
    strategy, weights = begun(chosen(), [41, 40, 39, 38]), model(0)
    rounds: list[list[tuple[Model, int]]] = []
    for number in range(1, 5):
        requests = send(strategy, number, weights, [])
        assert [message.metadata.dst_node_id for message in requests] == [41, 40, 39, 38], "asked in every round"
        # In round 3 it does not even say that it fails.
        silos = [k for k in range(4) if k != 1 or number in (1, 4)]
        present = [(near(model(0), 10 * number + k), 5 + 90 * k) for k in silos]
        replies = [answer(requests[k], one, k, count) for k, (one, count) in zip(silos, present, strict=True)]
        if number == 2:
            replies.append(error_reply(requests[1], "silo-1: OSError: no power"))
        weights, metrics = gather(strategy, number, replies)
        assert metrics["silos"] == len(silos)
        rounds.append(present)
        assert_near(weights, by_hand(rounds))
    assert caplog.text.count("silo-1: OSError: no power") == 1


def test_a_real_silo_that_misses_two_rounds_takes_part_again(tmp_path: Path) -> None:
    """The final model is the mean of the weights that three real silos sent in round 4."""
    sent: list[dict[str, tuple[dict[str, torch.Tensor], int]]] = []

    def tamper(replies: list[Message]) -> list[Message]:
        if replies and wire.ARRAYS in wire.array_names(replies[0]):
            number = len(sent) + 1
            sent.append({wire.silo_key(reply)[1]: read(reply) for reply in replies})
            return [without_power(reply) if number in (2, 3) and is_silo_1(reply) else reply for reply in replies]
        return replies

    folder = run_tiny(tiny_settings(tmp_path, strategy="fedavg", num_rounds=4, train_steps=4), tamper, report=False)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["silos"] for row in rows] == [3, 2, 2, 3]
    assert folder.log.read_text().count("answer left out: silo-1: no power") == 2
    final = ClassConditionalDDPMPipeline.from_pretrained(folder.models / "global").unet.state_dict()
    models, counts = zip(*(sent[3][f"silo-{k}"] for k in range(3)), strict=True)
    expected = mean_of(models, counts)
    for name, value in final.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-6, atol=1e-7)


def read(reply: Message) -> tuple[dict[str, torch.Tensor], int]:
    weights = wire.decode_tensors(wire.array_record(reply, wire.ARRAYS))
    return weights, int(wire.number(wire.metrics(reply), "num-examples"))


def is_silo_1(reply: Message) -> bool:
    return wire.silo_key(reply)[0] == 1


def without_power(reply: Message) -> Message:
    failed = Message(Error(code=2, reason="silo-1: no power"), reply_to=reply)
    failed.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return failed
