"""Silos whose names, errors and class names are written to forge lines, run terminals, or break pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message
from hostile_text import HOSTILE, SURROGATE, unshown
from real_silos import CLASSES, real_settings, run_real, write_silos
from spoiled_answers import failed

from fedsynth.cli import main
from fedsynth.messages import sender_of

HONEST = sorted(CLASSES)


def hostile(reply: Message) -> Message:
    """One silo lies about its name, one about its classes, and one answers with errors when asked for noise."""
    name, kind = sender_of(reply).name, reply.metadata.message_type
    if kind == "query.describe" and name == "u-named":
        reply.content["silo"] = ConfigRecord({**reply.content.config_records["silo"], "silo-name": HOSTILE})
    if kind == "query.describe" and name == "v-classes":
        config = reply.content.config_records["config"]
        reply.content["config"] = ConfigRecord({**config, "classes": ["0", HOSTILE[:200]]})
    if kind == "query.epsilon" and name == "east":
        return failed(reply, f"east: {HOSTILE}{SURROGATE}")
    return reply


def test_a_run_keeps_its_lines_and_pages_in_one_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silos = write_silos(tmp_path / "silos", {**CLASSES, "u-named": (0, 1), "v-classes": (0, 1)})
    settings = real_settings(tmp_path, num_clients=3, min_replies=1)
    folder = run_real(settings, silos, lambda replies: [hostile(reply) for reply in replies])

    log = folder.log.read_text(encoding="utf-8")
    assert not unshown(log)
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING) ", line) for line in log.splitlines())
    assert not re.search("^2026-01-01 00:00:00,000", log, re.MULTILINE)
    assert r"answer left out: east: x\n2026-01-01" in log
    assert r"left out: silo-name = 'x\n2026-01-01 00:00:00,000 INFO run finished" in log
    assert "must be 1 to 64 printable characters" in log
    assert "class name 'x\\n2026" in log
    assert max(map(len, log.splitlines())) < 2000

    for row in [json.loads(folder.status.read_text())["silos"], *(row["attendance"] for row in folder.read_metrics())]:
        assert set(row) <= set(HONEST)
        assert not any(unshown(str(was.get("left-out", ""))) for was in row.values())
    written = [*folder.path.glob("*.html"), *folder.path.rglob("*.md"), *folder.path.rglob("*.json*")]
    assert len(written) >= 7
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert not unshown(text), path
        assert path.suffix not in (".html", ".md") or "<script>" not in text, path

    assert main(["status", str(folder.path)]) == 0
    assert not unshown(capsys.readouterr().out)
