from __future__ import annotations

from typing import Any

import pytest

from fedsynth.cli.sweeps import first_guess
from fedsynth.cli.sweeps.first_guess import FirstGuess, Speed, Work, measured_speed, work_of
from fedsynth.config import RunConfig
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("a", "b"))


def config(strategy: str, **keys: Any) -> RunConfig:
    sizes = {"num-clients": 5, "num-samples": 7, "sampling-steps": 4}
    return RunConfig.from_run_config(
        {**sizes, "strategy": strategy, **{key.replace("_", "-"): value for key, value in keys.items()}}
    )


OWN: dict[str, Any] = {"train_steps": 10, "batch_size": 8}
SHARED: dict[str, Any] = {"train_steps": 30, "num_rounds": 2, "batch_size": 8}


@pytest.mark.parametrize(
    ("keys", "work"),
    [
        # Five silos, two at a time: three turns.
        ({"strategy": "dfd", "dfd_rounds": 6, **OWN}, Work(3 * 10, 3 * 6 * 7)),
        ({"strategy": "dfd", "dfd_rounds": 6, "generator_steps": 9, **OWN}, Work(3 * 10 + 9, 3 * 6 * 7)),
        ({"strategy": "pooled", **OWN}, Work(3 * 10, 4 * 7 / 2)),
        ({"strategy": "local", **OWN}, Work(3 * 10, 3 * 4 * 7)),
        ({"strategy": "fedavg", **SHARED}, Work(3 * 30, 4 * 7)),
        ({"strategy": "fedavg", "fraction_train": 0.5, **SHARED}, Work(1 * 30, 4 * 7)),
        ({"strategy": "centralised", **SHARED}, Work(30, 4 * 7)),
        ({"strategy": "fedddpm", "server_steps": 8, "local_steps": 10, **SHARED}, Work(3 * (10 + 30) + 2 * 8, 4 * 7)),
    ],
)
def test_work_is_what_is_done_one_after_the_other(keys: dict[str, Any], work: Work) -> None:
    assert work_of(config(**keys), SPEC, at_once=2) == work


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "dp-sum", "dp_epsilon": 10.0},
        {"strategy": "pooled", "dp_epsilon": 10.0},
        {"strategy": "my.module:Strategy"},
    ],
)
def test_work_of_another_kind_is_not_guessed(keys: dict[str, Any]) -> None:
    assert FirstGuess(lambda config, spec: Speed(1, 1)).seconds(config(**keys), SPEC) is None


def test_every_network_is_measured_once_and_none_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_guess, "silos_at_once", lambda config: 2)
    now, measured = 0.0, []

    def measure(config: RunConfig, spec: ImageSpec) -> Speed:
        nonlocal now
        now += 0.6 * first_guess.BUDGET
        measured.append(config.training.batch_size)
        return Speed(0.5, 0.25)

    guess = FirstGuess(measure, clock=lambda: now)
    seconds = guess.seconds(config("fedavg", **SHARED), SPEC)
    assert seconds == first_guess.AROUND + 90 * 0.5 + 28 * 0.25
    assert guess.seconds(config("krum", seed=3, **SHARED), SPEC) == seconds
    assert guess.seconds(config("fedavg", **SHARED | {"batch_size": 16}), SPEC) == seconds
    assert guess.seconds(config("fedavg", **SHARED | {"batch_size": 32}), SPEC) is None
    assert measured == [8, 16]


def test_a_real_network_is_measured() -> None:
    speed = measured_speed(config("fedavg", block_out_channels="32,32"), SPEC)
    assert 0 < speed.prediction < speed.step
