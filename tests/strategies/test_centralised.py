from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord

from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import TrainingState, initial_unet, to_model_range, train
from fedsynth.errors import UserError
from fedsynth.messages import transport
from fedsynth.seeding import make_generator
from strategies.base import Task
from strategies.centralised import Centralised
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange

NOBODY = cast(Exchange, None)
"""No silo is asked."""

CONFIG = RunConfig.from_run_config(
    {
        "block-out-channels": "8,8",
        "device": "cpu",
        "num-clients": 2,
        "partition": "iid",
        "samples-per-client": 40,
        "sampling-steps": 3,
        "strategy": "centralised",
        "sampler": "ddpm",
        "train-steps": 4,
    }
)


def task() -> Task:
    federation = load_federation(CONFIG)
    return Task(CONFIG, federation.spec, Census.unknown([1, 2], 10), torch.arange(6), federation)


def play(strategy: Centralised, numbers: Iterable[int]) -> tuple[ArrayRecord, list[tuple[Any, Any]]]:
    """The weights after some rounds, and the steps in all and those of the server after each."""
    goals = []
    for number in numbers:
        assert strategy.questions(number, ArrayRecord()) == []
        arrays, metrics = strategy.aggregate(number, iter([]))
        assert arrays is not None
        assert metrics is not None
        goals.append((metrics["steps"], metrics["server-steps"]))
    return arrays, goals


def begun(rounds: int, sample_from: str = "raw") -> tuple[Centralised, Task]:
    strategy, todo = Centralised(num_rounds=rounds, sample_from=sample_from), task()
    strategy.begin(todo, NOBODY)
    return strategy, todo


def by_hand() -> TrainingState:
    """All the silos' training images, steps = the sum over silos."""
    federation = load_federation(CONFIG)
    silos = [federation.silo(k, CONFIG).train for k in range(2)]
    images = to_model_range(np.concatenate([silo.images for silo in silos]))
    labels = torch.from_numpy(np.concatenate([silo.labels for silo in silos]))
    generator = make_generator(0, "centralised-training")
    state = TrainingState(initial_unet(CONFIG, federation.spec), CONFIG.recipe, generator, 2 * 4)
    train(state, images, labels, CONFIG.training, 2 * 4)
    return state


def assert_trained(arrays: ArrayRecord, expected: TrainingState) -> None:
    weights = transport.decode_tensors(arrays)
    assert all(torch.equal(weights[name], value) for name, value in expected.unet.state_dict().items())


def test_slices_make_one_training_on_the_union_also_across_a_stop(tmp_path: Path) -> None:
    whole, todo = begun(3)
    arrays, goals = play(whole, (1, 2, 3))
    assert goals == [(2, 2), (5, 3), (8, 3)]
    assert_trained(arrays, by_hand())
    first, _ = begun(3)
    play(first, [1])
    torch.save(first.state_dict(), tmp_path / "state")
    second = Centralised(num_rounds=3, sample_from="raw")
    second.resume(todo, NOBODY, torch.load(tmp_path / "state", weights_only=True))
    continued, goals = play(second, (2, 3))
    assert goals == [(5, 3), (8, 3)]
    assert_trained(continued, by_hand())
    outcome = second.finish(todo, continued)
    np.testing.assert_array_equal(outcome.images, whole.finish(todo, arrays).images)
    assert [loss for _, loss in outcome.curves["centralised"]] == by_hand().losses


def test_more_rounds_without_more_steps_have_shorter_slices() -> None:
    finished, todo = begun(2)
    play(finished, (1, 2))
    longer = Centralised(num_rounds=4)
    longer.resume(todo, NOBODY, finished.state_dict())
    assert [steps for _, steps in play(longer, (3, 4))[1]] == [2, 2]


def test_averaged_weights_are_sampled_when_asked() -> None:
    images = {}
    for sample_from in ("raw", "ema"):
        strategy, todo = begun(1, sample_from)
        images[sample_from] = strategy.finish(todo, play(strategy, [1])[0]).images
    assert images["raw"].shape == images["ema"].shape == (6, 8, 8, 1)
    assert (images["raw"] != images["ema"]).any()


def test_real_silos_do_not_show_their_images() -> None:
    real = Task(CONFIG, task().spec, Census.unknown([1], 10), torch.arange(2))
    with pytest.raises(UserError, match="works in simulation only"):
        Centralised().begin(real, NOBODY)
