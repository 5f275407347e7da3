from __future__ import annotations

import inspect
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import StubGrid
from hand_made_models import (
    AVERAGING,
    BUFFER,
    Exact,
    Model,
    answers,
    assert_equal,
    assert_near,
    exact,
    gather,
    mean_of,
    model,
    near,
    play,
    send,
)

from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM
from strategies.averaging.robust import FedMedian, FedTrimmedAvg
from strategies.base import Task
from strategies.conversation.census import Census

ROUNDS = 4
PLAIN = ["fedavg", "fedprox", "fedddpm", "fedddpm-plus"]
"""Without a correction and on whole models these take the weighted mean."""


@pytest.fixture(autouse=True)
def no_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedDDPM's correction needs an auxiliary set, and is tested with one elsewhere."""
    monkeypatch.setattr(FedDDPM, "correct", lambda self, server_round, arrays: arrays)


def build(name: str, **hyper: Any) -> AveragingStrategy:
    strategy = STRATEGIES[name](**hyper)
    assert isinstance(strategy, AveragingStrategy)
    return strategy


def round_of(number: int, n: int) -> list[Model]:
    return [near(model(0), 100 * number + k) for k in range(n)]


def counts_of(n: int) -> list[int]:
    return [1 + 37 * k * k for k in range(n)]


def median_by_hand(models: list[Model]) -> Exact:
    """Yin et al. 2018, Definition 1; numpy averages the middle pair too."""
    return {name: np.median([exact(weights)[name] for weights in models], axis=0) for name in models[0]}


def trimmed_mean_by_hand(models: list[Model], cut: int) -> Exact:
    """The same, Definition 2: the mean without the ``cut`` smallest and the ``cut`` largest."""
    result = {}
    for name in models[0]:
        values = np.sort([exact(weights)[name] for weights in models], axis=0)
        result[name] = values[cut : len(models) - cut].mean(axis=0)
    return result


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 51])
def test_median_agrees_with_numpy(n: int) -> None:
    strategy, weights = FedMedian(), model(0)
    for number in range(1, ROUNDS + 1):
        models = round_of(number, n)
        weights = play(strategy, number, weights, models, counts_of(n))
        assert_near(weights, median_by_hand(models))


@pytest.mark.parametrize(
    ("n", "beta", "cut"),
    [(5, 0.2, 1), (10, 0.2, 2), (9, 0.2, 1), (10, 0.0, 0), (7, 0.49, 3), (10, 0.3, 3), (100, 0.29, 29), (3, 0.33, 0)],
)
def test_trimmed_mean_agrees_with_numpy(n: int, beta: float, cut: int) -> None:
    strategy, weights = FedTrimmedAvg(beta=beta), model(0)
    for number in range(1, ROUNDS + 1):
        models = round_of(number, n)
        weights = play(strategy, number, weights, models, counts_of(n))
        assert_near(weights, trimmed_mean_by_hand(models, cut))


@pytest.mark.parametrize("name", PLAIN)
def test_mean_by_images_agrees_with_numpy(name: str) -> None:
    strategy, weights = build(name), model(0)
    for number in range(1, ROUNDS + 1):
        models = round_of(number, 6)
        weights = play(strategy, number, weights, models, counts_of(6))
        assert_near(weights, mean_of(models, counts_of(6)))


def test_median_of_three_is_the_middle() -> None:
    middle = model(1)
    models = [{name: value + step for name, value in middle.items()} for step in (7, 0, -2)]
    assert_equal(play(FedMedian(), 1, model(0), models, [1, 1000, 3]), middle)


def test_median_and_nearly_half_trimmed_are_the_same() -> None:
    models = round_of(1, 9)
    median = play(FedMedian(), 1, model(0), models, counts_of(9))
    assert_equal(play(FedTrimmedAvg(beta=0.49), 1, model(0), models, counts_of(9)), median)


def test_nothing_trimmed_is_the_plain_mean() -> None:
    models = round_of(1, 9)
    trimmed = play(FedTrimmedAvg(beta=0.0), 1, model(0), models, counts_of(9))
    assert_near(trimmed, exact(play(FedAvg(), 1, model(0), models, [5] * 9)), rtol=2e-7)


@pytest.mark.parametrize("chosen", [FedMedian, FedTrimmedAvg])
@pytest.mark.parametrize("attack", [-8.0, 1e30])
def test_hostile_silos_cannot_leave_the_range_of_the_others(chosen: type[AveragingStrategy], attack: float) -> None:
    honest = round_of(1, 8)
    hostile = [{name: value + attack if name != BUFFER else value for name, value in model(0).items()}] * 2
    result = play(chosen(), 1, model(0), [*hostile, *honest], [10**6] * 2 + [1] * 8)
    for name, value in result.items():
        stacked = torch.stack([weights[name] for weights in honest])
        slack = 1e-7 if value.is_floating_point() else 1
        assert ((value >= stacked.amin(0) - slack) & (value <= stacked.amax(0) + slack)).all(), name


@pytest.mark.parametrize("n", [3, 5, 7, 8])
@pytest.mark.parametrize("name", [name for name in AVERAGING if name not in ("fedadagrad", "fedadam", "fedyogi")])
def test_equal_answers_give_those_weights(name: str, n: int) -> None:
    hyper = {"server_momentum": 0.5} if name == "fedavgm" else {}
    found = play(build(name, **hyper), 1, model(0), [model(4)] * n, counts_of(n))
    if name == "fedavgm":
        assert_near(found, exact(model(4)))
    else:
        assert_equal(found, model(4))


@pytest.mark.parametrize("name", AVERAGING)
def test_answers_equal_to_the_global_weights_leave_them_as_they_are(name: str) -> None:
    strategy = build(name)
    for number in (1, 2, 3):
        assert_equal(play(strategy, number, model(4), [model(4)] * 7, counts_of(7)), model(4))


def wild_models(number: int) -> list[Model]:
    """Weights from 1e-9 to 1e9 that cancel in pairs: sums depend on their order even in double precision."""
    source = np.random.default_rng(number)
    positive = []
    for _ in range(4):
        values = {name: 10.0 ** source.uniform(-9, 9, value.shape) for name, value in model(0).items()}
        positive.append({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
    models = [*positive, *({name: -value for name, value in weights.items()} for weights in positive)]
    return [{**weights, BUFFER: torch.tensor([k, 10 * k])} for k, weights in enumerate(models)]


@pytest.mark.parametrize("name", AVERAGING)
def test_order_of_answers_changes_no_bit(name: str) -> None:
    hyper = (
        {"num_malicious_nodes": 1} if "num_malicious_nodes" in inspect.signature(STRATEGIES[name]).parameters else {}
    )
    results = []
    for seed in range(6):
        strategy, weights, source = build(name, **hyper), model(0, 1e-8), random.Random(seed)
        for number in (1, 2):
            requests = send(strategy, number, weights, range(50, 58))
            replies = answers(requests, wild_models(number), [3] * 8)
            weights, _ = gather(strategy, number, source.sample(replies, 8) if seed else replies)
        results.append(weights)
    for other in results[1:]:
        assert_equal(other, results[0])


def test_the_order_would_change_bits_if_answers_were_not_sorted() -> None:
    values = torch.stack([weights["conv_in.weight"] for weights in wild_models(1)]).double()
    one, other = (sum(values[k] / 8 for k in order).float() for order in (range(8), (0, 4, 1, 5, 2, 6, 3, 7)))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_whole_numbers_stay_whole_whatever_travels(name: str, dtype: str) -> None:
    config = RunConfig.from_run_config({"strategy": "fedavg", "block-out-channels": "4,4", "wire-dtype": dtype})
    task = Task(config, ImageSpec(1, 4, ("a",)), Census.unknown(range(7), 1), torch.tensor([0]))
    strategy = build(name)
    # Their own beginning needs silos that train.
    (FedAvg if isinstance(strategy, FedDDPM) else type(strategy)).begin(strategy, task, StubGrid([]))
    weights = {name: value.half().float() if name != BUFFER else value for name, value in model(0).items()}
    large = torch.tensor([2**40 + 1, -(2**31) - 7])
    requests = send(strategy, 1, {**weights, BUFFER: large}, [])
    assert wire.decode(wire.array_record(requests[0], wire.ARRAYS)[BUFFER]).tolist() == large.tolist()
    replies = answers(requests, [{**weights, BUFFER: large}] * 7, counts_of(7))
    found, _ = gather(strategy, 1, replies)
    assert found[BUFFER].dtype == torch.int64
    assert torch.equal(found[BUFFER], large)
    assert {value.dtype for layer, value in found.items() if layer != BUFFER} == {torch.float32}


RANGES: dict[str, list[float | str]] = {
    "num_rounds": [0, -3],
    "sampler": ["ula", "ddmp"],
    "sample_from": ["average"],
    "server_ema_decay": [-0.1, 1.0, math.nan],
    "fraction_train": [0.0, -0.5, 1.01, math.nan],
    "min_train_nodes": [0, -1],
    "num_malicious_nodes": [-1],
    "num_nodes_to_select": [-1],
    "beta": [-0.1, 0.5, math.nan],
    "server_learning_rate": [0.0, -1.0, math.nan, math.inf],
    "server_momentum": [-0.1, 1.0],
    "eta": [0.0, -1e-3, math.inf],
    "tau": [0.0, -1e-3, math.nan],
    "beta_1": [-0.1, 1.0],
    "beta_2": [-0.1, 1.0],
    "proximal_mu": [-0.01, math.inf],
    "feddiffuse_method": ["uspilt"],
    "aux_samples": [0],
    "server_steps": [0],
    "correction_learning_rate": [0.0, -1.0],
    "slow_window": [0],
    "slow_tolerance": [-0.1, 1.0],
    "correct_once": [],
}
"""What every argument refuses."""


@pytest.mark.parametrize("name", AVERAGING)
def test_arguments_out_of_range_are_refused_by_their_key(name: str) -> None:
    for argument in inspect.signature(STRATEGIES[name]).parameters:
        for value in RANGES[argument]:
            with pytest.raises(UserError, match=f"{argument.replace('_', '-')}.*{value}"):
                build(name, **{argument: value})


def test_every_argument_has_its_range_tested() -> None:
    known = {argument for name in AVERAGING for argument in inspect.signature(STRATEGIES[name]).parameters}
    assert known == set(RANGES)
