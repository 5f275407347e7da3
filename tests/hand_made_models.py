"""Small models as silos would send them, and rounds of averaging driven by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord
from hand_made import StubGrid, reply
from numpy.typing import NDArray

from fedsynth.config import RunConfig
from fedsynth.diffusion import select_parts
from fedsynth.messages import TrainRequest, transport
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange

Model = dict[str, torch.Tensor]
Exact = dict[str, NDArray[np.float64]]

AVERAGING = [name for name, chosen in STRATEGIES.items() if issubclass(chosen, AveragingStrategy)]
"""Names of all averaging strategies."""

BUFFER = "class_embedding.count"
"""The layer of whole numbers."""

SHAPES: dict[str, tuple[int, ...]] = {
    "conv_in.weight": (5, 4),
    BUFFER: (2,),
    "down_blocks.bias": (7,),
    "mid_block.scale": (),
    "up_blocks.weight": (3, 2, 2),
    "conv_out.bias": (3,),
}
"""Layers with names from every part of a U-Net, so that every strategy can take them."""


def model(seed: int, size: float = 0.05) -> Model:
    """Weights of normal size ``size``, and whole numbers below 1000."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**weights, BUFFER: torch.randint(1000, SHAPES[BUFFER], generator=generator)}


def near(weights: Mapping[str, torch.Tensor], seed: int, drift: float = 0.01) -> Model:
    """The same weights after training: each moved by a normal number of size ``drift``; other whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + drift * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.randint(1000, value.shape, generator=generator)
        for name, value in weights.items()
    }


def round_of(seed: int, n: int, f: int = 0) -> list[Model]:
    """``n`` answers, of which ``f``, in places that the seed draws, point elsewhere together."""
    hostile = set(np.random.default_rng(seed).permutation(n)[:f].tolist())
    away = near(model(0), 9999, 0.03)
    return [near(away if k in hostile else model(0), 100 * seed + k) for k in range(n)]


def counts_of(n: int) -> list[int]:
    """Very uneven numbers of images."""
    return [1 + 37 * k * k for k in range(n)]


def exact(weights: Mapping[str, torch.Tensor]) -> Exact:
    """The same numbers in float64 numpy."""
    return {name: value.numpy().astype(np.float64) for name, value in weights.items()}


def begun(strategy: AveragingStrategy, nodes: Sequence[int], **changes: Any) -> Task:
    """Tell a strategy its silos, of which number k is the k-th of ``nodes``; changes in kebab case."""
    settings = {"strategy": "fedavg", "block-out-channels": "4,4", "num-clients": len(nodes), **changes}
    census = Census(Member(node, f"silo-{k}", 9, [9]) for k, node in enumerate(nodes))
    task = Task(RunConfig.from_run_config(settings), ImageSpec(1, 4, ("a",)), census, torch.tensor([0]))
    strategy._task = task
    # FedDDPM's own preparation needs silos that train.
    own = FedAvg if isinstance(strategy, FedDDPM) else type(strategy)
    own.prepare(strategy, task, cast(Exchange, None))
    return task


def send(
    strategy: AveragingStrategy, number: int, weights: Mapping[str, torch.Tensor], nodes: Sequence[int] = ()
) -> list[Message]:
    """Requests of round ``number``; ``nodes`` are the connected silos of a strategy that has not begun."""
    return list(strategy.configure_train(number, transport.encode_tensors(weights), ConfigRecord(), StubGrid(nodes)))


def answer(request: Message, weights: Mapping[str, torch.Tensor], silo: int, count: int = 1, **metrics: Any) -> Message:
    """What partition ``silo`` answers: the parts it is asked for (all unless told), trained on ``count`` images."""
    parts = TrainRequest.from_message(request).report_parts
    asked = dict(weights) if parts is None else select_parts(weights, parts)
    return reply(request, "arrays", asked, partition=silo, num_examples=count, **metrics)


def answers(
    requests: Sequence[Message], models: Sequence[Model], counts: Sequence[int], loss: float | None = None
) -> list[Message]:
    """One answer each, of partitions 0, 1, ..., with losses 1, 2, ... or the one given."""
    return [
        answer(request, weights, silo, count, loss=1.0 + silo if loss is None else loss, seconds=0.5)
        for silo, (request, weights, count) in enumerate(zip(requests, models, counts, strict=True))
    ]


def gather(strategy: AveragingStrategy, number: int, replies: Sequence[Message]) -> tuple[Model, MetricRecord]:
    """The combined weights, and the metrics of the round."""
    arrays, metrics = strategy.aggregate_train(number, replies)
    assert arrays is not None
    assert metrics is not None
    return transport.decode_tensors(arrays), metrics


def play(
    strategy: AveragingStrategy, number: int, weights: Model, models: Sequence[Model], counts: Sequence[int]
) -> Model:
    """One whole round."""
    requests = send(strategy, number, weights, range(len(models)))
    return gather(strategy, number, answers(requests, models, counts))[0]


def mean_of(models: Sequence[Model], counts: Sequence[int]) -> Exact:
    """Σ n_k w_k / Σ n_k, the whole-number buffers not yet rounded."""
    pairs = list(zip(map(exact, models), counts, strict=True))
    return {name: np.asarray(sum(n / sum(counts) * one[name] for one, n in pairs)) for name in models[0]}


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Equal names in equal order, equal dtypes, equal bits."""
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def assert_near(found: Mapping[str, torch.Tensor], expected: Exact, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """Equal up to single precision, in the dtypes of :func:`model`; whole-number buffers to the nearest number."""
    assert list(found) == list(expected)
    for name, value in found.items():
        whole = name == BUFFER
        assert value.dtype == (torch.int64 if whole else torch.float32), name
        nearest = np.round(expected[name]) if whole else expected[name]
        np.testing.assert_allclose(value.numpy(), nearest, rtol=0 if whole else rtol, atol=0 if whole else atol)
