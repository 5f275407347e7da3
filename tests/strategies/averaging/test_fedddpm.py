from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from hand_made_models import Model, assert_equal
from tiny_runs import images_of, run_tiny, tiny_settings
from tiny_silos import LEARNING_RATE, SERVER_STEPS, TinySilos, play_real

from fedsynth.diffusion import initial_unet
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.output import RunFolder
from fedsynth.seeding import make_generator
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM
from strategies.base import Task


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> TinySilos:
    return TinySilos(tmp_path_factory.mktemp("fedddpm"))


def corrected_by_hand(task: Task, weights: Model, auxiliary: dict[str, torch.Tensor], number: int) -> Model:
    """Steps of Adam (Kingma & Ba 2015, Algorithm 1) on the loss of Ho et al. 2020, gradients clipped to norm 1."""
    network = initial_unet(task.config, task.spec)
    network.load_state_dict(weights)
    images = auxiliary["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
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
        gradients = torch.autograd.grad(((predicted - noise) ** 2).mean(), parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            g = g * min(1.0, 1.0 / (float(norm) + 1e-6))
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            p.data -= LEARNING_RATE * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return network.state_dict()


def test_correction_is_plain_training_on_the_auxiliary_set(silos: TinySilos) -> None:
    task, strategy, arrays = silos.begin()
    weights, auxiliary = wire.decode_tensors(arrays), strategy.state_dict()["auxiliary"]
    for number in (1, 2):
        averaged, _ = play_real(FedAvg(), number, weights)
        corrected, metrics = play_real(strategy, number, weights)
        expected = corrected_by_hand(task, averaged, auxiliary, number)
        for name, value in corrected.items():
            np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=1e-5, atol=2e-6)
        assert metrics["server-steps"] == SERVER_STEPS
        moved = max(float((corrected[name] - averaged[name]).abs().max()) for name in averaged)
        assert 2e-3 < moved <= SERVER_STEPS * LEARNING_RATE * 1.01
        weights = corrected


def test_order_of_answers_changes_no_bit_of_a_correction(silos: TinySilos) -> None:
    results = []
    for order in (1, -1):
        _, strategy, arrays = silos.begin()
        results.append(play_real(strategy, 1, wire.decode_tensors(arrays), order=order)[0])
    assert_equal(*results)


def test_continued_run_asks_for_no_upload_and_goes_on_with_the_same_set(silos: TinySilos) -> None:
    task, strategy, arrays = silos.begin()
    for member, seconds in zip(task.census, (1.5, 2.5, 3.5), strict=True):
        member.train_seconds = seconds
    weights, _ = play_real(strategy, 1, wire.decode_tensors(arrays))
    state = strategy.state_dict()
    whole, _ = play_real(strategy, 2, weights)
    other_task, grid, other = silos.meet()
    grid.kinds.clear()
    other.resume(other_task, grid, state)
    assert grid.kinds == Counter()
    assert [member.train_seconds for member in other_task.census] == [1.5, 2.5, 3.5]
    assert_equal(play_real(other, 2, weights)[0], whole)


def test_correction_without_a_set_says_so() -> None:
    with pytest.raises(RunError, match="a correction needs the auxiliary set: call begin first"):
        FedDDPM().refine(1, ArrayRecord(), MetricRecord())


class PowerCutError(Exception):
    """Ends a run in the middle."""


def run(folder: Path, cut_in_round: int | None = None, **changes: Any) -> tuple[RunFolder, Counter[str]]:
    """A tiny run, perhaps one that is cut, and what kinds of answer it got."""
    kinds: Counter[str] = Counter()

    def tamper(replies: list[Message]) -> list[Message]:
        kinds.update(reply.metadata.message_type for reply in replies)
        if cut_in_round is not None and kinds[wire.TRAIN] >= 3 * cut_in_round:
            raise PowerCutError
        return replies

    correction = {"aux_samples": 20, "server_steps": 2, "num_samples": 10, "num_rounds": 3}
    settings = tiny_settings(folder, **{"strategy": "fedddpm", **correction, **changes})
    if cut_in_round is None:
        return run_tiny(settings, tamper, report=False), kinds
    with pytest.raises(PowerCutError):
        run_tiny(settings, tamper, report=False)
    return RunFolder(folder / "runs" / str(settings["run-name"])), kinds


def test_whole_run_counts_the_server_s_steps_and_survives_a_cut(tmp_path: Path) -> None:
    whole, kinds = run(tmp_path)
    assert kinds == {"query.prepare": 3 + 3, "query.upload": 3, "train": 9}
    rows = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    assert [row["server-steps"] for row in rows] == [2, 2, 2]
    results = json.loads(whole.results.read_text())
    assert results["server-steps"] == 6
    folder, _ = run(tmp_path, cut_in_round=2, run_name="cut")
    assert not folder.synthetic.exists()
    folder, kinds = run(tmp_path, run_name="cut", resume=str(folder.path))
    assert kinds == {"query.prepare": 3, "train": 6}
    assert json.loads(folder.results.read_text())["server-steps"] == 6
    assert len(images_of(folder)) == 10
    assert images_of(folder) == images_of(whole)
