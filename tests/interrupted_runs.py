"""Runs in this process that are interrupted and continued, and the same runs in one go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from acting_settings import acting
from flwr.app import Message
from spoiled_answers import Tamper
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import RunConfig, Scalar
from fedsynth.messages import sender_of, transport
from fedsynth.output import ReportContent, RunFolder
from strategies import build_strategy
from strategies.run.checkpoint import Checkpoint

Settings = dict[str, Scalar]
Done = tuple[RunFolder, ReportContent]

SMALL: Settings = {
    "batch_size": 4,
    "classifier_rounds": 2,
    "classifier_steps": 4,
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
    "fedavg, shards": {"max_message_mb": 0.02, **SOME},
    "fedadam, shards": {"max_message_mb": 0.02, "sample_from": "ema"},
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
    "ddsa": {},
}
NINE = [
    "fedavg, ema",
    "fedadam",
    "feddiffuse, udec",
    "fedddpm-plus",
    "dfd",
    "dfd, stochastic solver",
    "dfd, langevin",
    "centralised",
    "pooled",
]
"""One run for every kind of state that a checkpoint holds; the others are interrupted in tests/long."""
WORDS = {"query.train_shards", "train", "query.epsilon", "query.sample"}
"""Kinds of messages that rounds send; feddiffuse sends one more after the last."""


class KilledError(Exception):
    """Stands for whatever ends a process."""


def settings(folder: Path, name: str, **changes: Scalar) -> Settings:
    own = {"strategy": name.split(", ")[0], "run_name": name.replace(", ", "-"), **RUNS[name], **changes}
    return tiny_settings(folder, **acting(SMALL, own))


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
        if sender_of(reply).partition == 1:
            for name in [name for name in reply.content if name.partition("#")[0] in transport.array_names(reply)]:
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

    def without_clocks(row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        return {key: without_clocks(value) for key, value in row.items() if key not in unequal}

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


def assert_killed_and_resumed_equals_whole(name: str, base: Path, **changes: Scalar) -> None:
    """The run dies in round 3, or in its last if it has fewer, and goes on; changes in snake case."""
    given = settings(base, name, **changes)
    whole = whole_run(given)
    killed_in = min(3, build_strategy(RunConfig.from_run_config(given))[0].num_rounds)
    if "centralised" in name:  # its rounds send nothing
        with killed_when_saving(killed_in):
            run(given)
    else:
        with pytest.raises(KilledError):
            run(given, in_round(killed_in, die))
    assert_equal_runs(run(resumed(given)), whole)


def assert_finished_run_goes_on(name: str, base: Path) -> None:
    """A run of two rounds goes on for four, as if it always had been one of four where no learning rate falls."""
    for decay in ("constant", "cosine"):
        rates = {"learning_rate_decay": decay, "warmup_steps": 0}
        given = settings(base, name, run_name=f"{name}, longer, {decay}", **rates)
        whole = whole_run(given)
        run({**given, "num-rounds": 2, "train-steps": 2})
        folder, content = run(resumed(given))
        if decay == "constant":
            assert_equal_runs((folder, content), whole)
        else:
            assert [row["round"] for row in folder.read_metrics()] == [1, 2, 3, 4]
            assert files_of(folder, "synthetic") != files_of(whole[0], "synthetic")


def assert_killed_late_repeats_no_round(name: str, base: Path) -> None:
    """The run dies after its last round, before anything is published."""
    given = settings(base, name, run_name=f"{name}, killed late")
    whole = whole_run(given)
    killed_after_the_rounds(given)
    sampled_by_silos = name == "feddiffuse, udec"
    assert_equal_runs(run(resumed(given), in_round(2 if sampled_by_silos else 1, die)), whole)
