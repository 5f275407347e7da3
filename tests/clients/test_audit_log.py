from __future__ import annotations

import json
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import ErrorCode
from one_silo import SPEC, Node, context_of, epsilon_request, policy_file, sample_request, settings_of

import clients.journal
import fedsynth.chained_file
from clients.app import answering, app
from clients.audit_log import AuditLog
from clients.context import SiloContext
from fedsynth.audit import AuditReport, read_audit
from fedsynth.errors import UserError
from fedsynth.messages import Answer, DescribeAnswer, DescribeRequest, PrepareRequest, transport


@pytest.fixture(autouse=True)
def _no_handler_that_outlives_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.journal, "log_to_stderr", lambda: None)


def read(path: Path, noted: str = "") -> AuditReport:
    with path.open("rb") as file:
        return read_audit(file, noted)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "silo")


def test_every_message_of_a_real_silo_is_an_entry(tmp_path: Path, image_folder: Path) -> None:
    policy = policy_file(tmp_path, noise_queries_per_run=1, answers=("describe", "prepare", "epsilon"))
    given = {"silo_name": "clinic", "state_path": str(tmp_path / "kept"), "policy_path": policy}
    node = Node(settings_of(tmp_path), SPEC, data_path=str(image_folder), **given)
    node.prepare()
    predicted = node.send(epsilon_request(421, server_round=3))
    node.refusal(epsilon_request(620, server_round=4))
    node.refusal(sample_request(node, [0], [0]))
    broken = epsilon_request().to_message(77)
    del broken.content["config"]["timestep"]
    assert app(broken, node.context).has_error()

    audit = tmp_path / "kept" / "clinic" / "audit.jsonl"
    report = read(audit)
    assert (report.problems, report.lines, list(report.runs)) == ([], 5, ["1"])
    prepared, answered, over, drawn, bad = entries(audit)
    assert prepared["asked"] == {"optimiser-steps": 4, "own-models": 1}
    assert (answered["message"], answered["outcome"], answered["round"]) == ("query.epsilon", "answered", 3)
    assert answered["asked"] == {"noise-queries": 1, "samples": 5}
    assert answered["answered"]["epsilon"] > 5 * 8 * 8 * 4
    assert answered["bytes-out"] == sum(answered["answered"].values()) == transport.payload_bytes(predicted)
    assert answered["bytes-in"] > 5 * 8 * 8 * 4
    assert answered["seconds"] > 0
    assert (over["outcome"], over["line"]) == ("refused", "noise-queries-per-run = 1")
    assert over["asked"] == {"noise-queries": 1, "samples": 5}
    assert (over["bytes-out"], "answered" in over) == (0, False)
    assert drawn["line"] == 'answers = ["describe", "prepare", "epsilon"]'
    assert (bad["outcome"], "line" in bad) == ("refused", False)
    assert bad["why"].startswith("MessageError: ")
    totals = report.runs["1"]
    assert totals.asked == {"optimiser-steps": 4, "own-models": 1, "noise-queries": 1, "samples": 5}
    assert totals.refused.total() == 3


def test_damaged_images_are_a_failure_and_no_refusal(tmp_path: Path, image_folder: Path) -> None:
    torn = next(image_folder.rglob("*.png"))
    torn.write_bytes(torn.read_bytes()[:-30])
    kept = {"silo_name": "clinic", "state_path": str(tmp_path / "kept")}
    node = Node(settings_of(tmp_path), SPEC, data_path=str(image_folder), **kept)
    assert "1 images cannot be read: the silo's log says which" in node.refusal(PrepareRequest(spec=SPEC))
    (entry,) = entries(tmp_path / "kept" / "clinic" / "audit.jsonl")
    assert (entry["outcome"], "cannot be read" in entry["why"]) == ("failed", True)


def test_a_simulated_silo_keeps_no_audit(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    Node(settings, SPEC, partition_id=1).send(PrepareRequest(spec=SPEC))
    assert not list(tmp_path.rglob("audit*"))


def test_crashes_and_the_silo_s_end_are_recorded(tmp_path: Path) -> None:
    def handle(request: DescribeRequest, silo: SiloContext) -> Answer:
        raise SystemExit("the silo is being stopped")

    context = context_of(data_path="x", silo_name="north", state_path=str(tmp_path))
    answering(DescribeRequest, handle)(DescribeRequest().to_message(77), context)
    (entry,) = entries(tmp_path / "north" / "audit.jsonl")
    assert (entry["outcome"], entry["why"]) == ("failed", "SystemExit: the silo is being stopped")


def test_what_cannot_be_recorded_is_neither_done_nor_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def handle(request: DescribeRequest, silo: SiloContext) -> DescribeAnswer:
        done.append(request)
        return DescribeAnswer(spec=SPEC)

    def ask() -> str:
        context = context_of(data_path="x", silo_name="north", state_path=str(tmp_path / "state"))
        answer = answering(DescribeRequest, handle)(DescribeRequest().to_message(77), context)
        if not answer.has_error():
            return ""
        assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION
        return str(answer.error.reason)

    (tmp_path / "state").write_text("in the way")
    said = ask()
    assert "audit.jsonl cannot be written (" in said
    assert "and nothing is answered unrecorded: make room there, or start the silo with another --state-path" in said
    assert done == []

    (tmp_path / "state").unlink()
    assert (ask(), len(done)) == ("", 1)
    before = (tmp_path / "state" / "north" / "audit.jsonl").read_bytes()
    # The disk fills up while the answer is being worked out.
    monkeypatch.setattr("fedsynth.chained_file.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert "audit.jsonl cannot be written (No space left)" in ask()
    assert len(done) == 2
    assert (tmp_path / "state" / "north" / "audit.jsonl").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 1, 30, -2, -1])
def test_a_line_that_a_crash_cut_short_is_closed_before_the_next_message(log: AuditLog, kept: int) -> None:
    for number in range(3):
        log.append({"time": "t", "run": "1", "message": "train", "outcome": "answered", "asked": {"samples": number}})
    *whole, last = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(whole) + last[:kept])
    log.check("later")
    log.append({"time": "t", "run": "1", "message": "train", "outcome": "answered"})
    report = read(log.path)
    assert report.problems == []
    # Without a byte of it there is nothing to close; a line without its line break alone is whole.
    assert report.cut_lines == ([3] if kept not in (0, -1) else [])
    assert report.runs["1"].answered["train"] == (4 if kept == -1 else 3)
    assert log.path.read_bytes().startswith(b"".join(whole) + last[:kept])


def test_the_first_line_may_be_the_one_that_was_cut_short(log: AuditLog) -> None:
    log.path.parent.mkdir()
    log.path.write_bytes(b'{"as')
    log.append({"outcome": "answered"})
    report = read(log.path)
    assert (report.problems, report.cut_lines, report.lines) == ([], [1], 3)


@pytest.mark.parametrize("end", [b"x\n", b"\n", b'{"number":1}\n', b"\0" * 200_000])
def test_an_end_that_no_crash_leaves_is_not_written_to(log: AuditLog, end: bytes) -> None:
    log.append({"outcome": "answered"})
    altered = log.path.read_bytes() + end
    log.path.write_bytes(altered)
    for write in (lambda: log.check("t"), lambda: log.append({"outcome": "answered"})):
        with pytest.raises(UserError, match="its last line is altered, see 'fedsynth silo audit'; move it away"):
            write()
    assert log.path.read_bytes() == altered


def test_a_write_that_fails_halfway_leaves_the_file_as_it_was(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append({"outcome": "answered"})
    before = log.path.read_bytes()
    limit = len(before) + 20

    class FullDisk(FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[: limit - os.fstat(self.fileno()).st_size])

    monkeypatch.setattr(fedsynth.chained_file, "FileIO", FullDisk)
    with pytest.raises(UserError, match="No space left on device"):
        log.append({"outcome": "answered"})
    assert log.path.read_bytes() == before


WRITER = """
import sys
from pathlib import Path
from clients.audit_log import AuditLog
log = AuditLog(Path(sys.argv[1]))
for number in range(40):
    log.append({"run": sys.argv[2], "message": "train", "outcome": "answered", "asked": {"samples": number}})
"""


def test_two_processes_write_whole_lines_in_turn(log: AuditLog) -> None:
    command = [sys.executable, "-c", WRITER, str(log.path.parent)]
    processes = [subprocess.Popen([*command, run]) for run in ("1", "2")]
    assert [process.wait(120) for process in processes] == [0, 0]
    report = read(log.path)
    assert (report.problems, report.lines) == ([], 80)
    assert {run: totals.asked["samples"] for run, totals in report.runs.items()} == {"1": 780, "2": 780}
