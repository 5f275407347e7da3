"""Answers of one silo that used to end a run: numbers and arrays that no model gives, and words of the engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dfd_by_hand import LABELS, ROUNDS, begin, drive, fresh, samples_of, task_of
from flwr.app import Array, ArrayRecord, Message
from flwr.common.constant import ErrorCode
from hand_made import StubGrid, error_reply, reply
from message_examples import EXAMPLES, copy_of, sent
from message_fuzzing import MUTATIONS
from spoiled_answers import spoil
from tiny_runs import run_tiny, tiny_settings

from fedsynth.errors import RunError
from fedsynth.messages import EpsilonRequest, npy, transport
from strategies.conversation.ask import ask
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD
from strategies.run.checkpoint import Checkpoint

CENSUS = Census(Member(50 - k, f"silo-{k}", 1, [1]) for k in range(3))
QUESTIONS = [
    (k, EpsilonRequest(samples=torch.zeros(2, 1, 4, 4), labels=torch.zeros(2, dtype=torch.int64), timestep=9))
    for k in range(3)
]
HONEST = torch.full((2, 1, 4, 4), 0.5)

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float64", "float128", "complex64", "complex128", "datetime64[s]", "timedelta64[s]", "U1", "S3", "V4"),
)


def numpy_array(values: np.ndarray) -> Array:
    """What another program would send of an array, in NumPy's format."""
    return Array(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", data=npy.dumps(values))


def epsilon_of(message: Message, array: Array) -> Message:
    made = reply(message, "epsilon", {"epsilon": HONEST})
    made.content["epsilon"] = ArrayRecord({"epsilon": array})
    return made


def answered(hostile: Callable[[Message], Message]) -> tuple[list[int], Exchange]:
    """Who counts where silo-1 answers ``hostile``."""

    def respond(message: Message) -> Message:
        if message.metadata.dst_node_id == 49:
            return hostile(message)
        return reply(message, "epsilon", {"epsilon": HONEST})

    exchange = Exchange(StubGrid([], respond), 5.0)
    return sorted(k for k, _ in ask(exchange, QUESTIONS, CENSUS, needed=2)), exchange


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_costs_its_silo_alone(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    array = numpy_array(np.ones((2, 1, 4, 4)).astype(dtype))
    counts, _ = answered(lambda message: epsilon_of(message, array))
    usable = dtype in ("float16", "float64")
    assert counts == ([0, 1, 2] if usable else [0, 2])
    assert ("silo-1 left out: " in caplog.text) != usable
    assert "Traceback" not in caplog.text


def test_noise_in_double_precision_does_not_end_cooperative_inference() -> None:
    strategy, task = DfD(dfd_rounds=ROUNDS), task_of()

    def double(message: Message, silo: int) -> Message:
        asked = EpsilonRequest.from_message(message)
        values = (0.1 * asked.samples).double() if silo == 1 else 0.1 * asked.samples
        return reply(message, "epsilon", {"epsilon": values})

    assert samples_of(drive(strategy, begin(strategy, task), answers=double)).isfinite().all()


@pytest.mark.parametrize("size", [3e38, 1e39, 1e7, float("nan"), float("inf")])
def test_noise_beyond_measure_moves_no_sample(size: float) -> None:
    strategy, silent = DfD(dfd_rounds=ROUNDS), DfD(dfd_rounds=ROUNDS)
    start = torch.randn(len(LABELS), 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def hostile(message: Message, silo: int) -> Message:
        asked = EpsilonRequest.from_message(message)
        values = torch.full_like(asked.samples, size, dtype=torch.float64) if silo == 1 else 0.1 * asked.samples
        return reply(message, "epsilon", {"epsilon": values})

    def without(message: Message, silo: int) -> Message:
        if silo == 1:
            return error_reply(message, "gone")
        return reply(message, "epsilon", {"epsilon": 0.1 * EpsilonRequest.from_message(message).samples})

    results = []
    for driven, answers in ((strategy, hostile), (silent, without)):
        begin(driven, task_of())
        results.append(samples_of(drive(driven, fresh(start, LABELS), answers=answers)))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["epsilon", "prepare", "train", "upload"])
def test_damaged_answers_cost_at_most_their_silo(name: str, caplog: pytest.LogCaptureFixture) -> None:
    request, answer = EXAMPLES[name]
    rng = random.Random(name)

    def respond(message: Message) -> Message:
        made = copy_of(sent(answer), message)
        for _ in range(rng.randint(1, 3) if message.metadata.dst_node_id == 49 else 0):
            rng.choice(MUTATIONS)(rng, made.content)
        return made

    exchange = Exchange(StubGrid([], respond), 5.0)
    for _ in range(150):
        found = {k for k, _ in ask(exchange, [(k, request) for k in range(3)], CENSUS, needed=2)}
        assert found >= {0, 2}
    assert caplog.text.count("silo-1 left out: ") > 50
    assert "Traceback" not in caplog.text, "each kind of damage is known to whoever reads"


class SurpriseError(Exception):
    """No kind of exception that reading an answer is known to raise."""


@pytest.mark.parametrize(
    "error", [SurpriseError, NotImplementedError, RecursionError, KeyError, TypeError, OverflowError]
)
def test_any_exception_while_an_answer_is_read_costs_its_silo_alone(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def check(silo: int, answer: Any) -> None:
        if silo == 1:
            raise error("of ours")

    exchange = Exchange(StubGrid([], lambda message: reply(message, "epsilon", {"epsilon": HONEST})), 5.0)
    found = sorted(k for k, _ in ask(exchange, QUESTIONS, CENSUS, needed=2, check=check))
    assert found == [0, 2]
    assert f"silo-1 left out: reading it failed: {error.__name__}: " in caplog.text
    assert "Traceback" in caplog.text, "a fault of ours stays visible"
    assert exchange.reply_log.last()["node-49"].left_out.startswith(f"reading it failed: {error.__name__}")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_no_answers_fault_ends_the_run(error: type[BaseException]) -> None:
    def check(silo: int, answer: Any) -> None:
        raise error

    exchange = Exchange(StubGrid([], lambda message: reply(message, "epsilon", {"epsilon": HONEST})), 5.0)
    with pytest.raises(error):
        list(ask(exchange, QUESTIONS, CENSUS, needed=2, check=check))


@pytest.mark.parametrize("code", [ErrorCode.UNKNOWN, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, -1, 2**31 - 1])
def test_words_of_the_engine_in_an_error_end_nothing(code: int, caplog: pytest.LogCaptureFixture) -> None:
    reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"
    counts, _ = answered(lambda message: error_reply(message, reason, code))
    assert counts == [0, 2]
    assert f"silo-1 left out: {reason}" in caplog.text


NUMBERS: dict[str, dict[str, Any]] = {
    "train-seconds 1.5e308": {"train-seconds": 1.5e308},
    "curve-steps 1e308": {"curve-steps": [1e308], "curve-losses": [0.5]},
    "seconds 1.5e308": {"seconds": 1.5e308},
}


def with_metrics(values: dict[str, Any]) -> Callable[[Message], Message]:
    def change(made: Message) -> Message:
        made.content["metrics"].update(values)
        return made

    return change


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_about_its_training_costs_a_silo_its_part_and_nobody_the_report(name: str, tmp_path: Path) -> None:
    # The first answer says what the silo holds, the second how its training went.
    tamper = spoil("query.prepare", with_metrics(NUMBERS[name]), first=2)
    folder = run_tiny(tiny_settings(tmp_path, strategy="pooled", min_replies=2), tamper, report=False)
    assert "silo-1 left out: " in folder.log.read_text()
    check_numbers(folder.path)


@pytest.mark.parametrize("values", [{"seconds": 1.5e308}, {"loss": float("nan")}])
def test_a_number_about_a_round_costs_a_silo_that_round(values: dict[str, Any], tmp_path: Path) -> None:
    folder = run_tiny(tiny_settings(tmp_path, strategy="fedavg"), spoil("train", with_metrics(values)), report=False)
    assert "silo-1 left out: " in folder.log.read_text()
    check_numbers(folder.path)


def check_numbers(folder: Path) -> None:
    """Every number that a run wrote is one: JSON knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for path in (*folder.glob("*.json"), folder / "synthetic" / "provenance.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    rows = [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert json.loads((folder / "results.json").read_text())["client-seconds"] < 3600


def with_weight(size: float) -> Callable[[Message], Message]:
    """Makes one weight of a model absurd."""

    def change(made: Message) -> Message:
        tensors = transport.decode_tensors(transport.array_record(made, "arrays"))
        tensors["conv_in.weight"].view(-1)[3] = size
        for name in [name for name in made.content if name.startswith("arrays#")]:
            del made.content[name]
        made.content["arrays"] = transport.encode_tensors(tensors)
        return made

    return change


@pytest.mark.parametrize(
    ("strategy", "kind", "size"),
    [("fedavg", "train", 3e38), ("fedadam", "train", -3e38), ("fedddpm", "query.upload", 3e38)],
)
def test_an_absurd_weight_reaches_no_checkpoint(strategy: str, kind: str, size: float, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"aux_samples": 20, "server_steps": 1} if strategy == "fedddpm" else {}
    settings = tiny_settings(tmp_path, strategy=strategy, **changes)
    folder = run_tiny(settings, spoil(kind, with_weight(size)), report=False)
    said = "silo-1 left out: layer conv_in.weight holds a number of size 3e+38: must be <= 1e+06"
    assert folder.log.read_text().count(said) == (2 if kind == "train" else 1)
    checkpoint = Checkpoint.load(folder.checkpoints)
    assert checkpoint is not None
    assert all(float(value.abs().max()) < 100 for value in checkpoint.arrays.values())


def test_a_step_of_the_server_that_overflows_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="fedavgm", server_learning_rate=1e12, server_momentum=0.0)
    with pytest.raises(RunError, match=r"round 1: the combined model is no model.*Lower server-learning-rate"):
        run_tiny(settings, report=False)
    assert not (tmp_path / "runs" / "run" / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("kept", [float("nan"), 1.5e308])
def test_a_run_whose_checkpoint_holds_such_a_number_goes_on(kept: float, tmp_path: Path) -> None:
    """As one of an earlier version, which added up whatever silos said."""
    settings = tiny_settings(tmp_path, strategy="fedavg", num_rounds=1)
    folder = run_tiny(settings, report=False)
    checkpoint = Checkpoint.load(folder.checkpoints)
    assert checkpoint is not None
    checkpoint.costs["client_seconds"] = kept
    checkpoint.save(folder.checkpoints)
    (row,) = folder.read_metrics()
    folder.metrics.write_text(json.dumps({**row, "client-seconds": kept}) + "\n")
    run_tiny({**settings, "num-rounds": 2, "resume": str(folder.path)}, report=False)
    assert "in the checkpoint is no cost: counted from 0" in folder.log.read_text()
    check_numbers(folder.path)
