"""Runs that are interrupted and continued, against the same runs in one go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from flwr.app import Message
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.output import ReportContent, RunFolder
from strategies import STRATEGIES, build_strategy
from strategies.run.checkpoint import Checkpoint

Settings = dict[str, Scalar]
Done = tuple[RunFolder, ReportContent]
Tamper = Callable[[list[Message]], list[Message]]

SMALL: Settings = {
    "batch_size": 4,
    "dfd_rounds": 4,
    "layers_per_block": 1,
    "local_steps": 2,
    "num_clients": 2,
    "num_rounds": 4,
    "num_samples": 10,
    "samples_per_client": 30,
    "sampling_steps": 2,
    "train_steps": 4,
}
THREE: Settings = {"num_clients": 3}
SOME: Settings = {**THREE, "fraction_train": 0.7}
CORRECTED: Settings = {"aux_samples": 6, "server_steps": 1}
SLOW: Settings = {**CORRECTED, "slow_window": 1, "slow_tolerance": 0.99}
RUNS: dict[str, Settings] = {
    "fedavg": {},
    "fedavg, ema": {"sample_from": "ema", **SOME},
    "fedmedian": THREE,
    "fedtrimmedavg": {"beta": 0.4, **THREE},
    "krum": THREE,
    "multikrum": THREE,
    "bulyan": THREE,
    "fedavgm": {},
    "fedadagrad": {},
    "fedadam": {"wire_dtype": "float16"},
    "fedyogi": {},
    "fedprox": {"proximal_mu": 0.1},
    "feddiffuse, full": {"feddiffuse_method": "full"},
    "feddiffuse, usplit": {"feddiffuse_method": "usplit"},
    "feddiffuse, ulatdec": {"feddiffuse_method": "ulatdec", "sample_from": "ema"},
    "feddiffuse, udec": {"feddiffuse_method": "udec", **SOME},
    "fedddpm": CORRECTED,
    "fedddpm-plus": {**SLOW, "correct_once": False},
    "fedddpm-plus, once": SLOW,
    "dfd": {},
    "dfd, stochastic solver": {"sampler": "sde-dpmsolver++"},
    "dfd, solver": {"sampler": "dpmsolver++"},
    "dfd, energy": {"weights": "energy"},
    "dfd, langevin": {"dfd_preset": "paper"},
    "centralised": {},
    "centralised, raw": {"sample_from": "raw"},
    "pooled": {},
    "local": {},
}
WORDS = {wire.TRAIN, wire.EPSILON, wire.SAMPLE}
"""Kinds of messages that rounds send; feddiffuse sends one more after the last."""


class KilledError(Exception):
    """Stands for whatever ends a process."""


def settings(folder: Path, name: str, **changes: Scalar) -> Settings:
    given = {**SMALL, "strategy": name.split(", ")[0], "run_name": name.replace(", ", "-"), **RUNS[name], **changes}
    return tiny_settings(folder, **given)


def in_round(number: int, act: Tamper, first: int = 1) -> Tamper:
    """``act`` on the answers of round ``number`` alone, in a run that starts with round ``first``."""
    rounds = iter(range(first, 100))

    def tamper(replies: list[Message]) -> list[Message]:
        is_round = any(reply.metadata.message_type in WORDS for reply in replies)
        return act(replies) if is_round and next(rounds) == number else replies

    return tamper


def die(replies: list[Message]) -> list[Message]:
    raise KilledError


def lose_silo_1(replies: list[Message]) -> list[Message]:
    for reply in replies:
        if wire.silo_key(reply)[0] == 1:
            for name in [name for name in reply.content if name.partition("#")[0] in wire.array_names(reply)]:
                del reply.content[name]
    return replies


@contextmanager
def killed_when_saving(number: int) -> Iterator[None]:
    """The process dies in round ``number``, its line already in the metrics, before its checkpoint is written."""
    save = Checkpoint.save

    def save_or_die(self: Checkpoint, folder: Path) -> None:
        if self.round == number:
            raise KilledError
        save(self, folder)

    with mock.patch.object(Checkpoint, "save", save_or_die), pytest.raises(KilledError):
        yield


def killed_after_the_rounds(given: Settings) -> None:
    with mock.patch("strategies.app.publish", side_effect=KilledError), pytest.raises(KilledError):
        run(given)


def run(given: Settings, tamper: Tamper = lambda replies: replies) -> Done:
    """Run, and return the folder and what the report would show."""
    with mock.patch("strategies.results.publish.write_report") as report:
        folder = run_tiny(given, tamper)
    return folder, report.call_args.args[1]


def whole_run(given: Settings, tamper: Tamper = lambda replies: replies) -> Done:
    """Run, and make room for a run of the same name."""
    folder, content = run(given, tamper)
    shutil.rmtree(f"{folder.path}-whole", ignore_errors=True)
    return RunFolder(folder.path.rename(f"{folder.path}-whole")), content


def resumed(given: Settings) -> Settings:
    return {**given, "resume": str(Path(str(given["output-dir"])) / str(given["run-name"]))}


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Rows of the metrics without what a clock measured, and without traffic, to which a second census adds."""
    unequal = ("seconds", "client-seconds", "bytes-down", "bytes-up")

    def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
        return {
            key: {name: without_clocks(was) for name, was in value.items()} if key == "attendance" else value
            for key, value in row.items()
            if key not in unequal
        }

    return [without_clocks(row) for row in folder.read_metrics()]


def files_of(folder: RunFolder, part: str) -> dict[str, bytes]:
    paths = [folder.path / part, *(folder.path / part).rglob("*")]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths if path.is_file()}


def assert_equal_runs(one: Done, other: Done) -> None:
    """Images, dataset card, model, settings, losses and curves are equal, to the last bit."""
    (folder, content), (expected, expected_content) = one, other
    assert len(list(folder.synthetic.rglob("*.png"))) >= 10
    for part in ("synthetic", "models", "config.json", "partition.json"):
        assert files_of(folder, part) == files_of(expected, part)
    assert rows_of(folder) == rows_of(expected)
    assert content.losses == expected_content.losses
    assert list(folder.path.rglob("*.part")) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def fedavg(base: Path) -> Done:
    return whole_run(settings(base, "fedavg", run_name="chain"))


def test_all_strategies_are_interrupted() -> None:
    assert {name.split(", ")[0] for name in RUNS} == set(STRATEGIES)


@pytest.mark.parametrize("name", RUNS)
def test_run_killed_in_round_3_and_resumed_equals_the_run_in_one_go(name: str, base: Path) -> None:
    given = settings(base, name)
    whole = whole_run(given)
    killed_in = min(3, build_strategy(RunConfig.from_run_config(given))[0].num_rounds)
    if "centralised" in name:  # its rounds send nothing
        with killed_when_saving(killed_in):
            run(given)
    else:
        with pytest.raises(KilledError):
            run(given, in_round(killed_in, die))
    assert_equal_runs(run(resumed(given)), whole)


@pytest.mark.parametrize("name", ["fedavg, ema", "feddiffuse, udec", "dfd"])
def test_silo_that_was_missing_before_the_interruption_is_back_after_it(name: str, tmp_path: Path) -> None:
    given = settings(tmp_path, name, **{**THREE, "min_replies": 1, "fraction_train": 1.0})
    whole = whole_run(given, in_round(2, lose_silo_1))

    def tamper(replies: list[Message]) -> list[Message]:
        return killed(missing(replies))

    missing, killed = in_round(2, lose_silo_1), in_round(3, die)
    with pytest.raises(KilledError):
        run(given, tamper)
    assert_equal_runs(run(resumed(given)), whole)
    assert "silo-1 left out" in whole[0].log.read_text()


@pytest.mark.parametrize("name", ["fedavg, ema", "fedyogi", "feddiffuse, udec", "fedddpm-plus", "centralised"])
def test_finished_run_goes_on_for_more_rounds(name: str, base: Path) -> None:
    given = settings(base, name, run_name=f"{name}, longer")
    whole = whole_run(given)
    run({**given, "num-rounds": 2, "train-steps": 2})
    assert_equal_runs(run(resumed(given)), whole)


def test_run_killed_again_and_again(base: Path, fedavg: Done) -> None:
    given = settings(base, "fedavg", run_name="chain")
    with killed_when_saving(1):
        run(given)
    assert [row["round"] for row in RunFolder(Path(str(resumed(given)["resume"]))).read_metrics()] == [1]
    with killed_when_saving(2):
        run(resumed(given))
    with pytest.raises(KilledError):
        run(resumed(given), in_round(4, die, first=2))
    with killed_when_saving(4):
        run(resumed(given))
    killed_after_the_rounds(resumed(given))
    assert_equal_runs(run(resumed(given)), fedavg)
    log = fedavg[0].path.with_name("chain") / "log.txt"
    assert log.read_text().count("run folder ") == 6


@pytest.mark.parametrize("name", ["pooled", "local", "dfd", "feddiffuse, udec"])
def test_run_killed_after_its_last_round_repeats_none(name: str, base: Path) -> None:
    given = settings(base, name, run_name=f"{name}, killed late")
    whole = whole_run(given)
    killed_after_the_rounds(given)
    sampled_by_silos = name == "feddiffuse, udec"
    assert_equal_runs(run(resumed(given), in_round(2 if sampled_by_silos else 1, die)), whole)


def test_finished_run_is_measured_again_and_keeps_its_dataset_until_then(base: Path) -> None:
    given = settings(base, "fedavg", run_name="measured again")
    folder, _ = run(given)
    before = files_of(folder, "synthetic")
    results = json.loads(folder.results.read_text())
    killed_after_the_rounds({**resumed(given), "evaluate": True})
    assert files_of(folder, "synthetic") == before
    assert json.loads(folder.results.read_text()) == results
    run({**resumed(given), "evaluate": True})
    after = files_of(folder, "synthetic")
    assert {key: after[key] for key in after if key.endswith("png")} == {
        key: before[key] for key in before if key.endswith("png")
    }
    assert "accuracy-cnn" in json.loads(folder.results.read_text()).keys() - results.keys()


def test_costs_add_up_over_the_interruption(base: Path, fedavg: Done) -> None:
    given = settings(base, "fedavg", run_name="costs")
    with pytest.raises(KilledError):
        run(given, in_round(3, die))
    folder = RunFolder(Path(str(given["output-dir"])) / "costs")
    saved = Checkpoint.load(folder.checkpoints)
    assert saved is not None
    run(resumed(given))
    results, rows = json.loads(folder.results.read_text()), folder.read_metrics()
    assert results["rounds"] == 4
    assert results["client-seconds"] == pytest.approx(sum(row["client-seconds"] for row in rows))
    assert results["wall-seconds"] > saved.costs["wall_seconds"] + sum(row["seconds"] for row in rows[2:])
    # Centralised training talks to the silos for the census alone.
    census, _ = run(settings(base, "centralised", run_name="census"))
    for key in ("bytes-down", "bytes-up"):
        more = np.array([row[key] for row in rows]) - [row[key] for row in fedavg[0].read_metrics()]
        assert more.tolist() == [0, 0, *[census.read_metrics()[0][key]] * 2]
        assert results[key] == rows[-1][key]


def test_training_of_own_models_is_charged_once(base: Path) -> None:
    for name in ("dfd", "fedddpm"):
        given = settings(base, name, run_name=f"{name}, charged")
        with pytest.raises(KilledError):
            run(given, in_round(3, die))
        folder, _ = run(resumed(given))
        models = [json.loads(path.read_text()) for path in (base / "state").glob("silo-[01]/models/*/training.json")]
        rounds = sum(row["client-seconds"] for row in folder.read_metrics())
        charged = json.loads(folder.results.read_text())["client-seconds"] - rounds
        assert any(charged == pytest.approx(a["seconds"] + b["seconds"]) for a in models for b in models if a is not b)


def test_what_the_rounds_wait_for_may_change(base: Path) -> None:
    given = settings(base, "fedavg", run_name="patient", **THREE, min_replies=3)
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1"):
        run(given, in_round(2, lose_silo_1))
    folder, _ = run({**resumed(given), "min-replies": 2}, in_round(2, lose_silo_1, first=2))
    assert [row["silos"] for row in folder.read_metrics()] == [3, 2, 3, 3]
