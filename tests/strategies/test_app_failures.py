from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import wire
from fedsynth.output import RunFolder


def spoil(silo: int, epsilon_only: Callable[[Message], None]) -> Callable[[list[Message]], list[Message]]:
    def tamper(replies: list[Message]) -> list[Message]:
        for message in replies:
            if wire.EPSILON_RECORD in wire.array_names(message) and wire.silo_key(message)[0] == silo:
                epsilon_only(message)
        return replies

    return tamper


def test_silo_that_answers_nonsense_is_left_out_of_a_whole_run(tmp_path: Path) -> None:
    def to_nan(message: Message) -> None:
        record = wire.array_record(message, wire.EPSILON_RECORD)
        nans = torch.full_like(wire.decode(next(iter(record.values()))), math.nan)
        message.content[wire.EPSILON_RECORD] = wire.encode_tensors({wire.EPSILON_RECORD: nans})

    folder = run_tiny(tiny_settings(tmp_path, run_name="nonsense"), tamper=spoil(1, to_nan), report=False)
    assert folder.log.read_text().count("silo-1 left out: answer is not finite") == 4
    assert len(images_of(folder)) == 30


def test_failed_run_says_why_and_publishes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = tiny_settings(tmp_path, node_timeout=0.05)
    caplog.set_level(logging.INFO, "fedsynth")
    (tmp_path / "state").write_text("a file where the silos' folders should be")
    with pytest.raises(RunError, match=r"0 usable answers, 1 needed: silo-\d: UserError: state folder"):
        run_tiny(settings)
    folder = RunFolder(tmp_path / "runs" / "run")
    assert caplog.text.count("error: 0 usable answers") == 1
    assert "error: 0 usable answers, 1 needed: silo-" in folder.log.read_text()
    assert not folder.synthetic.exists()
    assert not folder.results.exists()
    assert not folder.metrics.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_clients": 99999}, "num-clients = 99999"),
        ({"sampler": "ula", "weights": "posterior"}, "weights = 'posterior'"),
        ({"alpha": -1.0}, "alpha = -1.0"),
    ],
)
def test_what_cannot_run_leaves_no_folder(
    wrong: dict[str, Scalar], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=said):
        run_tiny(tiny_settings(tmp_path, **wrong))
    assert caplog.text.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_more_nodes_than_silos_are_refused_by_name(tmp_path: Path) -> None:
    # Node ids are random: which partitions the first num-clients nodes have is chance.
    with pytest.raises(RunError, match=r"num-clients = 2, but there is a partition 2: set num-supernodes and num-clie"):
        run_tiny(tiny_settings(tmp_path, num_clients=2), nodes=slice(1, 3))
