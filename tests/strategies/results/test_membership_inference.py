"""Attacks on the models of a run: silos that memorise are found, others are not, and nothing stops the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from hand_made import StubGrid, reply
from spoiled_answers import Tamper, spoil
from tiny_runs import run_tiny, tiny_settings
from tiny_silos import TinySilos, WatchedExchange

from fedsynth.data import Silo
from fedsynth.diffusion import initial_unet, make_scheduler, noise_predictor, to_model_range, to_uint8
from fedsynth.messages import EpsilonRequest, transport
from fedsynth.seeding import make_generator
from strategies.base import Outcome, Task
from strategies.conversation.exchange import Exchange
from strategies.results.membership_inference import GLOBAL_MODEL, ModelAttack, attack_models

NOTHING = Outcome(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64))
NAMES = ["silo-0", "silo-1", "silo-2"]
Done = tuple[Task, WatchedExchange, ModelAttack]


def silos_of(task: Task) -> list[Silo]:
    assert task.federation is not None
    return [task.federation.silo(k, task.config) for k in range(len(task.census))]


class Oracle:
    """Answers for the silos: the true noise of images that a silo has memorised, otherwise none."""

    def __init__(self, task: Task, memorised: set[str]) -> None:
        self._alphas = make_scheduler(task.config.recipe).alphas_cumprod
        self._names = {member.node_id: member.name for member in task.census}
        pairs = zip(task.census, silos_of(task), strict=True)
        self._known = {m.name: to_model_range(silo.train.images) for m, silo in pairs if m.name in memorised}

    def __call__(self, message: Message) -> Message:
        asked = EpsilonRequest.from_message(message)
        assert asked.timestep is not None
        epsilon = self._epsilon(asked.samples, asked.timestep, self._names[message.metadata.dst_node_id])
        return reply(message, "epsilon", {"epsilon": epsilon})

    def _epsilon(self, x_t: torch.Tensor, t: int, name: str) -> torch.Tensor:
        noise, epsilon = noise_of(name, t), torch.zeros_like(x_t)
        alpha_bar = float(self._alphas[t])
        images = (x_t - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
        for image in self._known.get(name, ()):
            epsilon[(images - image).abs().amax((1, 2, 3)) < 1e-3] = noise
        return epsilon


def noise_of(name: str, timestep: int) -> torch.Tensor:
    return torch.randn(1, 8, 8, generator=make_generator(0, "membership-inference", name, timestep))


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> TinySilos:
    return TinySilos(tmp_path_factory.mktemp("silos"))


def trained(
    silos: TinySilos, tamper: Tamper = lambda replies: replies, recipe: str = "default"
) -> tuple[Task, WatchedExchange]:
    """Silos whose own models are trained; ``tamper`` sees later answers only."""
    task, exchange, strategy = silos.meet(recipe=recipe)
    strategy.begin(task, exchange)
    exchange.grid._tamper = tamper
    exchange.sent.clear()
    return task, exchange


@pytest.fixture(scope="module")
def done(silos: TinySilos) -> Done:
    """Silos, the questions that they were asked, and what the attack found."""
    task, exchange = trained(silos)
    return task, exchange, attacked(exchange, task)


def attacked(exchange: Exchange, task: Task, outcome: Outcome = NOTHING) -> ModelAttack:
    attack = attack_models(exchange, task, outcome)
    assert attack is not None
    return attack


@pytest.mark.parametrize(("recipe", "timesteps"), [("paper", (100, 200, 300)), ("default", (203, 393, 564))])
def test_exactly_the_silos_that_know_their_images_are_found(
    recipe: str, timesteps: tuple[int, ...], silos: TinySilos
) -> None:
    task, _ = trained(silos, recipe=recipe)
    attack = attacked(Exchange(StubGrid([], Oracle(task, {"silo-1"})), 60.0), task)
    assert attack.timesteps == timesteps
    assert [*attack.by_model] == NAMES
    for name, membership in attack.by_model.items():
        assert membership.auc == pytest.approx(1.0 if name == "silo-1" else 0.5, abs=0.1), name
        assert membership.n_members == membership.n_non_members > 20
    assert attack.row()["epsilon-membership-auc-highest"] > 0.95


def test_members_are_training_images_and_the_others_are_not(done: Done) -> None:
    task, exchange, attack = done
    alpha_bar = float(make_scheduler(task.config.recipe).alphas_cumprod[attack.timesteps[0]])
    for message, name, silo in zip(exchange.sent[:3], NAMES, silos_of(task), strict=True):
        asked = EpsilonRequest.from_message(message)
        images = to_uint8(
            (asked.samples - (1 - alpha_bar) ** 0.5 * noise_of(name, attack.timesteps[0])) / alpha_bar**0.5
        )
        trained_on = {image.tobytes() for image in silo.train.images}
        is_member = [image.tobytes() in trained_on for image in images]
        half = attack.by_model[name].n_members
        assert is_member == [True] * half + [False] * half
        members, others = asked.labels[:half], asked.labels[half:]
        assert members.bincount(minlength=10).tolist() == others.bincount(minlength=10).tolist()


def test_the_attack_is_the_silo_s_own_network_s(silos: TinySilos, done: Done) -> None:
    """The same errors from the network on the silo's disk, with NumPy's own count of won pairs."""
    task, exchange, attack = done
    for k, name in enumerate(NAMES):
        predict, errors = noise_predictor(silos.own_model(k), task.config.recipe), 0.0
        for message in exchange.sent[k::3]:
            asked = EpsilonRequest.from_message(message)
            assert asked.timestep is not None
            answer = predict(asked.samples, asked.timestep, asked.labels)
            errors = errors + ((answer - noise_of(name, asked.timestep)).double() ** 2).mean((1, 2, 3)).numpy()
        half = attack.by_model[name].n_members
        won = np.mean([(m < n) + 0.5 * (m == n) for m in errors[:half] for n in errors[half:]])
        assert attack.by_model[name].auc == pytest.approx(won, abs=1e-6)


def test_a_silo_that_fails_is_left_out_by_name(silos: TinySilos, caplog: pytest.LogCaptureFixture) -> None:
    def broken(answer: Message) -> Message:
        answer.content["epsilon"] = transport.encode_tensors({"epsilon": torch.zeros(2, 1, 8, 8)})
        return answer

    task, exchange = trained(silos, spoil("query.epsilon", broken))
    assert [*attacked(exchange, task).by_model] == ["silo-0", "silo-2"]
    assert "silo-1 left out: answer has shape (2, 1, 8, 8)" in caplog.text


def test_a_model_on_the_server_is_attacked_directly(done: Done) -> None:
    task, exchange, _ = done
    before = len(exchange.sent)
    attack = attacked(exchange, task, replace(NOTHING, unet=initial_unet(task.config, task.spec)))
    assert [*attack.by_model] == [GLOBAL_MODEL]
    membership = attack.by_model[GLOBAL_MODEL]
    # An untrained network knows nobody; 300 on each side have a standard error of .024.
    assert membership.n_members == membership.n_non_members > 150
    assert membership.auc == pytest.approx(0.5, abs=0.1)
    assert len(exchange.sent) == before


def test_without_knowing_the_members_or_a_model_there_is_no_attack(silos: TinySilos, done: Done) -> None:
    task, exchange, _ = done
    assert attack_models(exchange, replace(task, federation=None), NOTHING) is None
    untrained, exchange, _ = silos.meet()
    assert attack_models(exchange, untrained, NOTHING) is None


def test_a_run_reports_the_attack_and_does_not_charge_it(tmp_path: Path) -> None:
    quick = {"feature_extractor": "pixels", "classifiers": "logistic-regression", "classifier_seeds": 1}
    folder = run_tiny(tiny_settings(tmp_path, evaluate=True, **quick), report=False)
    results, last = json.loads(folder.results.read_text()), folder.read_metrics()[-1]
    assert 0.0 <= results["epsilon-membership-auc"] <= 1.0
    assert [*results["epsilon-membership"]] == NAMES
    assert (results["bytes-up"], results["bytes-down"], results["rounds"]) == (last["bytes-up"], last["bytes-down"], 4)
