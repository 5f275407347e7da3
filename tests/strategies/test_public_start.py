"""Runs whose networks start from a public model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from acting_settings import acting
from one_silo import Node, settings_of, simulated
from public_models import write_public_model
from real_silos import real_settings, run_real, write_silos

from clients.models.local_model import LocalModel, load_network
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.diffusion import initial_unet, public_start
from fedsynth.errors import RunError, UserError
from fedsynth.messages import PrepareRequest, transport
from fedsynth.output import RunFolder
from fedsynth.privacy.statement import PUBLIC_START
from strategies import build_strategy
from strategies.base import Outcome, Task
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.results.publish import _provenance, _start_note
from strategies.run.opening import check_partition, write_partition

CLASSES = tuple("0123456789")
PRIVATE: dict[str, Scalar] = {"dp_epsilon": 1.0, "dp_steps": 3, "dp_multiplicity": 1, "dp_sampling_rate": 1.0}


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_public_model(tmp_path_factory.mktemp("public") / "model", CLASSES)


def digest_of(folder: Path) -> str:
    start = public_start(RunConfig.from_run_config({"init-from": str(folder)}))
    assert start is not None
    return start.digest


def task_of(folder: Path, start: Path | str, **changes: Any) -> Task:
    given = acting({"train_steps": 4}, {"init_from": str(start), **changes})
    config = RunConfig.from_run_config({**settings_of(folder, train_steps=400), **given})
    federation = load_federation(config)
    return Task(config, federation.spec, Census.unknown([1, 2, 3], 10), torch.arange(6), federation)


def key_of(node: Node) -> str:
    silo = load_federation(node.config).silo(1, node.config)
    return LocalModel(silo, node.spec, node.config, Path("nowhere")).key


@pytest.mark.parametrize("private", [False, True])
def test_silos_own_models_start_from_it_and_are_told_from_others(private: bool, public: Path, tmp_path: Path) -> None:
    # At so low a rate no weight moves far: the trained model shows where it began.
    own = {"train_steps": 400, **PRIVATE} if private else {"copy_check": False, "early_stop": False}
    changes: dict[str, Any] = {"learning_rate": 1e-7, **own}
    moved = shutil.copytree(public, tmp_path / "moved")
    plain, started, again = (simulated(tmp_path, init_from=str(path), **changes) for path in ("", public, moved))
    assert started.ask(
        PrepareRequest(spec=started.spec, train_seconds=100.0, private=private, start=digest_of(public))
    ).finished
    assert key_of(plain) != key_of(started) == key_of(again) == started.own_model.name, "the same wherever it lies"
    trained = load_network(started.own_model, torch.device("cpu")).state_dict()
    theirs, fresh = (initial_unet(node.config, node.spec).state_dict() for node in (started, plain))
    assert max(float((trained[name] - value).abs().max()) for name, value in theirs.items()) < 1e-5
    assert max(float((fresh[name] - value).abs().max()) for name, value in theirs.items()) > 0.1


@pytest.mark.parametrize("strategy", ["fedavg", "centralised"])
def test_what_the_server_begins_with_is_the_public_model(strategy: str, public: Path, tmp_path: Path) -> None:
    todo = task_of(tmp_path, public, strategy=strategy, num_rounds=2)
    arrays = build_strategy(todo.config)[0].begin(todo, cast(Exchange, None))
    theirs = initial_unet(todo.config, todo.spec).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in transport.decode_tensors(arrays).items())


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_silos(tmp_path_factory.mktemp("silos"))


def test_the_set_says_where_training_started(public: Path, tmp_path: Path) -> None:
    todo = task_of(tmp_path, public, strategy="dfd", **PRIVATE)
    outcome = Outcome(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64), notes=_start_note(todo.config))
    said = _provenance(todo, outcome, "")
    assert said["start"] == digest_of(public)
    assert f"Training started from a public model (SHA-256 {digest_of(public)})" in said["caveats"][0]
    assert PUBLIC_START in said["privacy"]["statement"]
    plain = _provenance(task_of(tmp_path, "", strategy="dfd", **PRIVATE), outcome, "")
    assert "start" not in plain
    assert PUBLIC_START not in plain["privacy"]["statement"]


def test_a_silo_with_another_public_model_or_with_none_is_named(
    public: Path, silos: dict[str, Path], tmp_path: Path
) -> None:
    other = write_public_model(tmp_path / "other", CLASSES, seed=8)
    settings = real_settings(tmp_path, init_from=str(public))
    own = {name: {"init-from": str(path)} for name, path in zip(silos, (public, other, public), strict=True)}
    with pytest.raises(RunError) as caught:
        run_real(settings, silos, **own)
    said = f"start from the public model '{digest_of(public)}', that of this silo is '{digest_of(other)}'"
    assert f"south: UserError: init-from: the run's networks {said}" in str(caught.value)
    del own["south"]
    with pytest.raises(
        RunError, match=r"south: UserError: init-from: .* this silo has none: start it with --init-from"
    ):
        run_real({**settings, "run-name": "again"}, silos, **own)
    assert not list(tmp_path.rglob("state/**/models/*"))


def test_a_run_goes_on_from_its_own_start_only(public: Path, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    write_partition(folder, task_of(tmp_path, public))
    check_partition(folder, task_of(tmp_path, shutil.copytree(public, tmp_path / "moved")))
    other = write_public_model(tmp_path / "other", CLASSES, seed=8)
    with pytest.raises(UserError, match=r"init-from: the public model is '.*', the run to resume has '.*'"):
        check_partition(folder, task_of(tmp_path, other))
    with pytest.raises(UserError, match="init-from: no public model is given, the run to resume has"):
        check_partition(folder, task_of(tmp_path, ""))
