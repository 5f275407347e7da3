from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hand_made import StubGrid

from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import TrainingState, initial_unet, to_model_range, train
from fedsynth.errors import RunError, UserError
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.base import Task
from strategies.centralised import Centralised
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange

CONFIG = RunConfig.from_run_config(
    {
        "block-out-channels": "8,8",
        "device": "cpu",
        "num-clients": 2,
        "partition": "iid",
        "samples-per-client": 40,
        "sampling-steps": 3,
        "strategy": "centralised",
        "train-steps": 4,
    }
)


NOBODY = Exchange(StubGrid([]), 1.0)


def task() -> Task:
    federation = load_federation(CONFIG)
    return Task(CONFIG, federation.spec, Census.unknown([1, 2], 10), torch.arange(6), federation)


def run(rounds: int, sample_from: str) -> tuple[ArrayRecord, np.ndarray, list[int]]:
    strategy, todo, goals = Centralised(num_rounds=rounds, sample_from=sample_from), task(), []
    arrays = strategy.begin(todo, NOBODY)
    for number in range(1, rounds + 1):
        arrays, metrics = strategy.run_round(number, arrays, NOBODY)
        goals.append(int(metrics["steps"]))
    assert NOBODY.traffic.messages == 0
    return arrays, strategy.finish(todo, arrays).images, goals


def by_hand() -> TrainingState:
    """All the silos' training images, steps = the sum over silos."""
    federation = load_federation(CONFIG)
    silos = [federation.silo(k, CONFIG).train for k in range(2)]
    images = to_model_range(np.concatenate([silo.images for silo in silos]))
    labels = torch.from_numpy(np.concatenate([silo.labels for silo in silos]))
    generator = make_generator(0, "centralised-training")
    state = TrainingState(initial_unet(CONFIG, federation.spec), CONFIG.training, generator)
    train(state, images, labels, CONFIG.training, CONFIG.diffusion, 2 * 4)
    return state


def test_slices_make_one_training_on_the_union() -> None:
    arrays, _, goals = run(3, "raw")
    assert goals == [2, 5, 8]
    expected = by_hand().unet.state_dict()
    weights = wire.decode_tensors(arrays)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("sample_from", ["raw", "ema"])
def test_training_goes_on_from_what_was_saved(sample_from: str, tmp_path: Path) -> None:
    expected, images, _ = run(3, sample_from)
    first = Centralised(num_rounds=3, sample_from=sample_from)
    first.begin(task(), NOBODY)
    first.aggregate_train(1, [])
    torch.save(first.state_dict(), tmp_path / "state")
    second, todo = Centralised(num_rounds=3, sample_from=sample_from), task()
    second.resume(todo, NOBODY, torch.load(tmp_path / "state", weights_only=True))
    goals = []
    for number in (2, 3):
        arrays, metrics = second.aggregate_train(number, [])
        assert metrics is not None
        goals.append((metrics["steps"], metrics["server-steps"]))
    assert goals == [(5, 3), (8, 3)]
    assert arrays is not None
    weights, whole = wire.decode_tensors(arrays), wire.decode_tensors(expected)
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
    outcome = second.finish(todo, arrays)
    np.testing.assert_array_equal(outcome.images, images)
    assert [loss for _, loss in outcome.curves["centralised"]] == by_hand().losses


def test_more_rounds_without_more_steps_have_shorter_slices() -> None:
    finished = Centralised(num_rounds=2)
    finished.begin(task(), NOBODY)
    for number in (1, 2):
        finished.aggregate_train(number, [])
    longer = Centralised(num_rounds=4)
    longer.resume(task(), NOBODY, finished.state_dict())
    steps = [dict(longer.aggregate_train(number, [])[1] or {})["server-steps"] for number in (3, 4)]
    assert steps == [2, 2]


def test_averaged_weights_are_sampled_when_asked() -> None:
    _, raw, _ = run(1, "raw")
    _, averaged, _ = run(1, "ema")
    assert raw.shape == averaged.shape == (6, 8, 8, 1)
    assert (raw != averaged).any()


def test_real_silos_do_not_show_their_images() -> None:
    real = Task(CONFIG, task().spec, Census.unknown([1], 10), torch.arange(2))
    with pytest.raises(UserError, match="works in simulation only"):
        Centralised().begin(real, NOBODY)


def test_nothing_without_begin() -> None:
    with pytest.raises(RunError, match="call begin first"):
        Centralised().aggregate_train(1, [])
