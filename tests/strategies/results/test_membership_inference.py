"""Attacks on the models of a run: silos that memorise are found, others are not, and nothing stops the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from hand_made import reply
from tiny_runs import run_tiny, tiny_settings
from tiny_silos import Tamper, TinySilos, WatchedGrid

from fedsynth.data import Silo
from fedsynth.diffusion import initial_unet, make_scheduler, noise_predictor, to_model_range, to_uint8
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task
from strategies.conversation.exchange import ExchangeGrid
from strategies.results.membership_inference import GLOBAL_MODEL, ModelAttack, attack_models

NOTHING = Outcome(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64))
NAMES = ["silo-0", "silo-1", "silo-2"]


def silos_of(task: Task) -> list[Silo]:
    assert task.federation is not None
    return [task.federation.silo(k, task.config) for k in range(len(task.census))]


class Oracle:
    """Answers for the silos: the true noise of images that a silo has memorised, otherwise none."""

    timeout = 60.0

    def __init__(self, task: Task, memorised: set[str]) -> None:
        self._alphas = make_scheduler(task.config.diffusion).alphas_cumprod
        self._names = {member.node_id: member.name for member in task.census}
        pairs = zip(task.census, silos_of(task), strict=True)
        self._known = {m.name: to_model_range(silo.train.images) for m, silo in pairs if m.name in memorised}

    def send_and_receive(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            samples = wire.decode(wire.array_record(message, wire.ARRAYS)[wire.SAMPLES])
            timestep = int(wire.number(wire.config(message), "timestep"))
            epsilon = self._epsilon(samples, timestep, self._names[message.metadata.dst_node_id])
            yield reply(message, wire.EPSILON_RECORD, {wire.EPSILON_RECORD: epsilon})

    def _epsilon(self, x_t: torch.Tensor, t: int, name: str) -> torch.Tensor:
        noise, epsilon = noise_of(name, t), torch.zeros_like(x_t)
        alpha = float(self._alphas[t])
        images = (x_t - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        for image in self._known.get(name, ()):
            epsilon[(images - image).abs().amax((1, 2, 3)) < 1e-3] = noise
        return epsilon


def noise_of(name: str, timestep: int) -> torch.Tensor:
    return torch.randn(1, 8, 8, generator=make_generator(0, "membership-inference", name, timestep))


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> TinySilos:
    return TinySilos(tmp_path_factory.mktemp("silos"))


def trained(silos: TinySilos, tamper: Tamper = lambda replies: replies) -> tuple[Task, WatchedGrid]:
    """Silos whose own models are trained; ``tamper`` sees later answers only."""
    task, grid, strategy = silos.meet()
    strategy.begin(task, grid)
    grid._tamper = tamper
    return task, grid


@pytest.mark.parametrize("memorised", [set(), {"silo-1"}, set(NAMES)])
def test_exactly_the_silos_that_know_their_images_are_found(silos: TinySilos, memorised: set[str]) -> None:
    task, _ = trained(silos)
    attack = attack_models(Oracle(task, memorised), task, NOTHING)  # type: ignore[arg-type]
    assert attack is not None
    assert attack.timesteps == (100, 200, 300)
    assert [*attack.by_model] == NAMES
    for name, membership in attack.by_model.items():
        expected = 1.0 if name in memorised else 0.5
        assert membership.auc == pytest.approx(expected, abs=0.1), name
        assert membership.n_members == membership.n_non_members > 20
    assert attack.row()["epsilon-membership-auc-highest"] > 0.95 or not memorised


def recorded_attack(grid: WatchedGrid, task: Task) -> tuple[ModelAttack, list[Message]]:
    """The attack and its questions, level by level and within a level in the order of the census."""
    sent: list[Message] = []
    inner = ExchangeGrid(grid, 60.0)

    class Recording:
        timeout = inner.timeout

        def send_and_receive(self, messages: Iterable[Message]) -> Iterator[Message]:
            batch = list(messages)
            sent.extend(batch)
            return inner.send_and_receive(batch)

    attack = attack_models(Recording(), task, NOTHING)  # type: ignore[arg-type]
    assert attack is not None
    return attack, sent


def test_members_are_training_images_and_the_others_are_not(silos: TinySilos) -> None:
    task, grid = trained(silos)
    attack, sent = recorded_attack(grid, task)
    alphas = make_scheduler(task.config.diffusion).alphas_cumprod
    for message, name, silo in zip(sent[:3], NAMES, silos_of(task), strict=True):
        tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
        alpha = float(alphas[100])
        images = to_uint8((tensors[wire.SAMPLES] - (1 - alpha) ** 0.5 * noise_of(name, 100)) / alpha**0.5)
        trained_on = {image.tobytes() for image in silo.train.images}
        is_member = [image.tobytes() in trained_on for image in images]
        half = attack.by_model[name].n_members
        assert is_member == [True] * half + [False] * half
        labels = tensors[wire.LABELS]
        assert labels[:half].bincount(minlength=10).tolist() == labels[half:].bincount(minlength=10).tolist()


def test_the_attack_is_the_silo_s_own_network_s(silos: TinySilos) -> None:
    """The same errors from the network on the silo's disk, with NumPy's own count of won pairs."""
    task, grid = trained(silos)
    attack, sent = recorded_attack(grid, task)
    for k, name in enumerate(NAMES):
        predict, errors = noise_predictor(silos.own_model(k)), 0.0
        for message in sent[k::3]:
            tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
            timestep = int(wire.number(wire.config(message), "timestep"))
            answer = predict(tensors[wire.SAMPLES], timestep, tensors[wire.LABELS])
            errors = errors + ((answer - noise_of(name, timestep)).double() ** 2).mean((1, 2, 3)).numpy()
        half = attack.by_model[name].n_members
        won = np.mean([(m < n) + 0.5 * (m == n) for m in errors[:half] for n in errors[half:]])
        assert attack.by_model[name].auc == pytest.approx(won, abs=1e-6)


def test_a_silo_that_fails_is_left_out_by_name(silos: TinySilos, caplog: pytest.LogCaptureFixture) -> None:
    def fail(replies: list[Message]) -> list[Message]:
        return [broken(r) if wire.silo_key(r)[1] == "silo-1" else r for r in replies]

    def broken(answer: Message) -> Message:
        answer.content[wire.EPSILON_RECORD] = wire.encode_tensors({"epsilon": torch.full((2, 1, 8, 8), torch.nan)})
        return answer

    task, grid = trained(silos, fail)
    attack = attack_models(ExchangeGrid(grid, 60.0), task, NOTHING)
    assert attack is not None
    assert [*attack.by_model] == ["silo-0", "silo-2"]
    assert "silo-1 left out: answer has shape (2, 1, 8, 8)" in caplog.text


def test_a_model_on_the_server_is_attacked_directly(silos: TinySilos) -> None:
    task, grid = trained(silos)
    grid.kinds.clear()
    unet = initial_unet(task.config, task.spec)
    attack = attack_models(ExchangeGrid(grid, 60.0), task, replace(NOTHING, unet=unet))
    assert attack is not None
    assert [*attack.by_model] == [GLOBAL_MODEL]
    membership = attack.by_model[GLOBAL_MODEL]
    # An untrained network knows nobody; 300 on each side have a standard error of .024.
    assert membership.n_members == membership.n_non_members > 150
    assert membership.auc == pytest.approx(0.5, abs=0.1)
    assert not grid.kinds


def test_without_knowing_the_members_or_a_model_there_is_no_attack(silos: TinySilos) -> None:
    task, grid = trained(silos)
    assert attack_models(ExchangeGrid(grid, 60.0), replace(task, federation=None), NOTHING) is None
    untrained, grid, _ = silos.meet()
    assert attack_models(ExchangeGrid(grid, 60.0), untrained, NOTHING) is None


@pytest.mark.parametrize("strategy", ["fedavg", "dfd"])
def test_a_run_reports_the_attack_and_does_not_charge_it(strategy: str, tmp_path: Path) -> None:
    quick = {
        "evaluate": True,
        "feature_extractor": "pixels",
        "classifiers": "logistic-regression",
        "strategy": strategy,
    }
    rows = {}
    for asked in (True, False):
        settings = tiny_settings(tmp_path / str(asked), **quick, membership_inference=asked)
        rows[asked] = json.loads(run_tiny(settings, report=False).results.read_text())
    assert "epsilon-membership-auc" not in rows[False]
    assert 0.0 <= rows[True]["epsilon-membership-auc"] <= 1.0
    models = [GLOBAL_MODEL] if strategy == "fedavg" else NAMES
    assert [*rows[True]["epsilon-membership"]] == models
    for key in ("bytes-up", "bytes-down", "rounds"):
        # The numbers themselves travel too, with as many digits as they have.
        assert rows[True][key] == pytest.approx(rows[False][key], abs=200), key
