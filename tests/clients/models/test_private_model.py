"""A silo's own model trained with differential privacy: accounted for once, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_silo import settings_of

from clients.models.local_model import LocalModel, load_network
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import TrainingState
from fedsynth.privacy import Mechanism
from fedsynth.privacy.dp_training import mechanism_of

PRIVATE = {"train_steps": 400, "dp_epsilon": 1.0, "dp_steps": 3, "dp_multiplicity": 1, "dp_sampling_rate": 1.0}


def model_of(state: Path, before_steps: Callable[[Mechanism], None], **changes: Any) -> LocalModel:
    config = RunConfig.from_run_config(settings_of(state, **{**PRIVATE, **changes}))
    federation = load_federation(config)
    return LocalModel(federation.silo(0, config), federation.spec, config, state, before_steps=before_steps)


def expected(**changes: Any) -> Mechanism:
    return mechanism_of(RunConfig.from_run_config(settings_of(Path(), **{**PRIVATE, **changes})))


def test_all_steps_are_accounted_for_once_before_the_first(tmp_path: Path) -> None:
    spent: list[Mechanism] = []
    steps = []
    while not (model := model_of(tmp_path, spent.append)).finished:
        steps.append(model.train_slice(0.0).steps)
    assert steps == [1, 2, 3]
    assert spent == [expected()]
    assert spent[0].steps == 3
    history = model.history()
    assert history.keys() == {"seconds", "steps", "losses"}
    assert (history["steps"], history["losses"]) == ([3.0], [])
    assert model.copied_share() is None
    again = model_of(tmp_path, spent.append)
    assert again.finished
    assert len(spent) == 1, "a model that is there costs nothing"


def test_refused_steps_are_not_made(tmp_path: Path) -> None:
    def refuse(mechanism: Mechanism) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        model_of(tmp_path, refuse).train_slice(0.0)
    assert not list(tmp_path.rglob("*.pt"))


def test_killed_between_account_and_step_it_is_accounted_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[Mechanism] = []

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "save", die)
        with pytest.raises(KeyboardInterrupt):
            model_of(tmp_path, spent.append).train_slice(0.0)
    model_of(tmp_path, spent.append).train_slice(0.0)
    assert len(spent) == 2
    # Nor does a checkpoint that cannot be read count for less.
    (checkpoint,) = tmp_path.rglob("*.pt")
    checkpoint.write_bytes(b"damaged")
    model_of(tmp_path, spent.append).train_slice(0.0)
    assert len(spent) == 3


def test_own_model_of_a_method_with_rounds_leaves_them_their_share(tmp_path: Path) -> None:
    spent: list[Mechanism] = []
    model_of(tmp_path, spent.append, strategy="fedddpm").train_slice(0.0)
    whole = expected(strategy="fedddpm")
    assert (whole.steps, spent[0].steps) == (6, 3)
    assert spent[0].noise_multiplier == whole.noise_multiplier > expected().noise_multiplier
    assert not model_of(tmp_path, spent.append).finished, "its noise is another method's"


def test_seed_of_the_run_does_not_lead_to_the_noise(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "other"):
        model = model_of(tmp_path / name, lambda mechanism: None)
        model.train_slice(1000.0)
        weights.append(load_network(model.folder, torch.device("cpu")).state_dict())
    assert not any(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
