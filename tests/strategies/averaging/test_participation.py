"""Who is asked in a round, and silos that come and go."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hand_made import error_reply
from hand_made_models import BUFFER, answer, assert_near, begun, exact, gather, mean_of, model, near, send

from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.server_optimizers import FedAvgM

LAYER = {"conv_in.weight": torch.zeros(1)}


def asked(fraction: float, nodes: list[int], minimum: int = 2, seed: int = 0) -> FedAvg:
    strategy = FedAvg(fraction_train=fraction, min_train_nodes=minimum)
    begun(strategy, nodes, seed=seed)
    return strategy


def drawn(strategy: AveragingStrategy, nodes: list[int], number: int) -> tuple[int, ...]:
    """Indices of the silos that are asked in a round."""
    return tuple(nodes.index(message.metadata.dst_node_id) for message in send(strategy, number, LAYER))


def test_a_draw_depends_on_seed_and_round_alone() -> None:
    several = [list(range(10)), list(range(900, 890, -1)), [2**63 - 7 * k * k for k in range(10)]]
    draws = [[drawn(asked(0.5, nodes), nodes, number) for number in range(1, 21)] for nodes in several]
    assert draws[1] == draws[2] == draws[0]
    strategy = asked(0.5, several[0])
    assert [drawn(strategy, several[0], number) for number in (3, 1, 2)] == [draws[0][k] for k in (2, 0, 1)]
    assert len(set(draws[0])) > 12, "252 possible draws"
    assert sum(one != following for one, following in pairwise(draws[0])) >= 18
    other = asked(0.5, several[0], seed=1)
    assert sum(drawn(other, several[0], number) != draws[0][number - 1] for number in range(1, 21)) >= 18


def test_silos_and_pairs_of_silos_are_drawn_equally_often() -> None:
    nodes, rounds = list(range(10)), 1000
    strategy = asked(0.3, nodes)
    together = np.zeros((10, 10))
    for number in range(1, rounds + 1):
        chosen = drawn(strategy, nodes, number)
        assert list(chosen) == sorted(set(chosen))
        assert len(chosen) == 3
        together[np.ix_(chosen, chosen)] += 1
    alone, pair = 3 / 10, 3 * 2 / (10 * 9)
    np.testing.assert_allclose(np.diag(together) / rounds, alone, atol=4 * math.sqrt(alone * (1 - alone) / rounds))
    pairs = together[np.triu_indices(10, 1)] / rounds
    np.testing.assert_allclose(pairs, pair, atol=4 * math.sqrt(pair * (1 - pair) / rounds))


@pytest.mark.parametrize(("fraction", "minimum"), [("1.0", 2), ("0.3", 1), ("0.29", 2), ("0.57", 7), ("0.01", 1)])
def test_number_of_silos_is_the_share_rounded_down_but_at_least_the_minimum(fraction: str, minimum: int) -> None:
    for silos in (1, 3, 10, 100):
        nodes = list(range(silos))
        strategy = asked(float(fraction), nodes, minimum)
        expected = min(silos, max(minimum, math.floor(Fraction(fraction) * silos)))
        assert strategy.num_participants(silos) == len(drawn(strategy, nodes, 3)) == expected


def test_a_silo_that_misses_two_rounds_takes_part_again(caplog: pytest.LogCaptureFixture) -> None:
    strategy, weights = FedAvgM(), model(0)
    begun(strategy, [41, 40, 39, 38])
    expected, velocity = exact(weights), {name: 0 * value for name, value in exact(weights).items()}
    for number in range(1, 5):
        requests = send(strategy, number, weights)
        assert [message.metadata.dst_node_id for message in requests] == [41, 40, 39, 38], "asked in every round"
        # In round 3 it does not even say that it fails.
        silos = [k for k in range(4) if k != 1 or number in (1, 4)]
        models, counts = [near(model(0), 10 * number + k) for k in silos], [5 + 90 * k for k in silos]
        replies = [answer(requests[k], one, k, n) for k, one, n in zip(silos, models, counts, strict=True)]
        if number == 2:
            replies.append(error_reply(requests[1], "silo-1: OSError: no power"))
        weights, metrics = gather(strategy, number, replies)
        assert metrics["silos"] == len(silos)
        mean = mean_of(models, counts)
        velocity = {name: 0.9 * velocity[name] + mean[name] - old for name, old in expected.items()}
        expected = {name: old + velocity[name] for name, old in expected.items()} | {BUFFER: np.round(mean[BUFFER])}
        assert_near(weights, expected)
    assert caplog.text.count("silo-1: OSError: no power") == 1
