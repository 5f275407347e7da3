from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from hand_made_models import Model
from tiny_silos import LEARNING_RATE, SERVER_STEPS, TinySilos, play_real

from fedsynth.diffusion import initial_unet
from fedsynth.errors import RunError
from fedsynth.messages import transport
from fedsynth.seeding import make_generator
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM, learning_is_slow
from strategies.base import Task
from strategies.run.costs import Costs
from strategies.run.rounds import Round


def corrected_by_hand(task: Task, weights: Model, auxiliary: dict[str, torch.Tensor], number: int) -> Model:
    """Steps of Adam (Kingma & Ba 2015, Algorithm 1), gradients clipped to norm 1.

    The papers' recipe: the loss of Ho et al. 2020 on linear levels. The default: that of x_0, weighted by min(SNR + 1,
    5), on the cosine levels of Nichol & Dhariwal 2021, with the weight decay of Loshchilov & Hutter 2019.
    """
    paper = task.config.recipe.prediction == "epsilon"
    network = initial_unet(task.config, task.spec)
    network.load_state_dict(weights)
    images = auxiliary["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
    signals = (((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008) * torch.pi / 2).cos() ** 2
    betas = torch.linspace(1e-4, 0.02, 1000) if paper else (1 - signals[1:] / signals[:-1]).clamp(max=0.999).float()
    alphas = torch.cumprod(1 - betas, 0)
    generator = make_generator(0, "correction", number)
    parameters = list(network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(1, SERVER_STEPS + 1):
        rows = torch.randint(len(images), (32,), generator=generator)
        t = torch.randint(1000, (32,), generator=generator)
        noise = torch.randn(32, 1, 8, 8, generator=generator)
        signal = alphas[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * images[rows] + (1 - signal).sqrt() * noise
        predicted = network(noisy, t, class_labels=auxiliary["labels"][rows]).sample
        weight = (1 / (1 - signal)).clamp(max=5)
        loss = (predicted - noise) ** 2 if paper else weight * (predicted - images[rows]) ** 2
        gradients = torch.autograd.grad(loss.mean(), parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            g = g * min(1.0, 1.0 / (float(norm) + 1e-6))
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            p.data *= 1 if paper else 1 - LEARNING_RATE * 0.01
            p.data -= LEARNING_RATE * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return network.state_dict()


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_correction_is_plain_training_on_the_auxiliary_set(recipe: str, silos: TinySilos) -> None:
    task, strategy, arrays = silos.begin(recipe=recipe)
    weights, auxiliary = transport.decode_tensors(arrays), strategy.state_dict()["auxiliary"]
    for number in (1, 2):
        averaged, _ = play_real(FedAvg(), number, weights)
        corrected, metrics = play_real(strategy, number, weights)
        expected = corrected_by_hand(task, averaged, auxiliary, number)
        for name, value in corrected.items():
            np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=1e-5, atol=2e-6)
        assert metrics["server-steps"] == SERVER_STEPS
        moved = max(float((corrected[name] - averaged[name]).abs().max()) for name in averaged)
        # AdamW takes a hundredth of the weight itself besides.
        assert 2e-3 < moved <= SERVER_STEPS * LEARNING_RATE * 1.02
        weights = corrected


def test_correction_without_a_set_says_so() -> None:
    with pytest.raises(RunError, match="a correction needs the auxiliary set: call begin first"):
        FedDDPM().refine(1, ArrayRecord(), MetricRecord())


PLUS: dict[str, Any] = {"strategy": "fedddpm-plus", "slow_window": 2, "slow_tolerance": 0.02}
LOSSES = [1.0, 0.8, 0.7, 0.699, 0.698, 0.5, 0.499, 0.498, 0.497]
"""Falls, stands from round 4 to 5, falls once more, stands from round 8 on, when judged over two rounds at 2 %."""

SLOW = [5, 8, 9]


def test_slow_is_a_relative_drop_below_the_tolerance() -> None:
    for losses, window, tolerance, slow in (
        ([1.0], 1, 0.01, False),
        ([1.0, 1.0], 1, 0.01, True),
        ([1.0, 1.0], 2, 0.01, False),
        ([1.0, 0.9, 1.0], 2, 0.01, True),
        ([200.0, 199.0], 1, 0.01, True),
        ([200.0, 197.0], 1, 0.01, False),
        ([1.0, 1.0], 1, 0.0, False),
        ([1.0, 0.75], 1, 0.25, False),
    ):
        assert learning_is_slow(losses, window, tolerance) is slow


@pytest.mark.parametrize(("once", "corrected"), [(True, SLOW[:1]), (False, SLOW)])
def test_plus_corrects_when_learning_is_slow_also_across_a_stop(
    silos: TinySilos, once: bool, corrected: list[int]
) -> None:
    _, strategy, arrays = silos.begin(**PLUS, correct_once=once)
    weights, costs = transport.decode_tensors(arrays), Costs()
    for number, loss in enumerate(LOSSES, start=1):
        if number in (5, 7):
            task, exchange, continued = silos.meet(**PLUS, correct_once=once)
            exchange.sent.clear()
            continued.resume(task, exchange, strategy.state_dict())
            strategy = continued
            assert exchange.sent == [], "no silo is asked for its model again"
        found, metrics = play_real(strategy, number, weights, loss)
        averaged, _ = play_real(FedAvg(), number, weights, loss)
        costs.add(Round(number, metrics, arrays, 0.0))
        due = number in corrected
        assert metrics["server-steps"] == (SERVER_STEPS if due else 0)
        assert all(torch.equal(found[name], averaged[name]) for name in found) is not due
        weights = found
    assert costs.row()["server-steps"] == SERVER_STEPS * len(corrected)


def test_plus_without_losses_says_what_it_needs(silos: TinySilos) -> None:
    _, strategy, arrays = silos.begin(**PLUS)
    with pytest.raises(RunError, match="no silo tells its loss: have them set tell-train-loss = true"):
        strategy.refine(1, arrays, MetricRecord())
