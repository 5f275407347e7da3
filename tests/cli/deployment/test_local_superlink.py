from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsynth.cli.deployment import local_superlink
from fedsynth.cli.deployment.flower import SIMULATION, free_ports, stop_superlinks
from fedsynth.cli.deployment.flower_output import reason
from fedsynth.cli.deployment.local_superlink import start_superlink
from fedsynth.cli.deployment.machine import PORT_VARIABLES
from fedsynth.cli.deployment.processes import marked
from fedsynth.errors import RunError

MARKED = "a SuperLink of a test"
ENDS = '#!/bin/sh\nsleep 100 &\necho "$@"\necho "sqlite3.DatabaseError: file is not a database" >&2\nexit 1\n'
SILENT = "#!/bin/sh\nsleep 100\n"
STARTS = f"""#!{sys.executable}
import http.server, sys

class Health(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Health.asked += 1
        self.send_response(503 if Health.asked < 3 else 200 if self.path == "/health" else 404)
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Where a stand-in for ``flower-superlink`` is found; nothing that was started stays."""
    (tmp_path / "bin").mkdir()
    paths = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    monkeypatch.setenv("PATH", paths)
    ports = zip(PORT_VARIABLES, map(str, free_ports(2)), strict=True)
    yield {**os.environ, "PATH": paths, **dict(ports), SIMULATION: MARKED, "FLWR_HOME": str(tmp_path)}
    stop_superlinks(tmp_path)
    assert marked(MARKED, SIMULATION) == []


def stand_in(program: str, folder: Path) -> None:
    path = folder / "bin" / "flower-superlink"
    path.write_text(program)
    path.chmod(0o755)


def test_a_superlink_is_waited_for_until_it_is_healthy(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(STARTS, tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert start_superlink(tmp_path, environment, tmp_path / "run.txt")
    assert stop_superlinks(tmp_path) == 1


def test_a_superlink_that_never_answers_ends_the_run_by_name(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(SILENT, tmp_path)
    monkeypatch.setattr(local_superlink, "START_LIMIT", 0.5)
    with pytest.raises(RunError, match="SuperLink does not answer 0 s after its start: the machine may be busy"):
        start_superlink(tmp_path, environment, tmp_path / "run.txt")


def test_why_a_superlink_ended_is_asked_once_more(tmp_path: Path, environment: dict[str, str]) -> None:
    stand_in(ENDS, tmp_path)
    output = tmp_path / "run.txt"
    output.write_text("")
    assert not start_superlink(tmp_path, environment, output)
    said = output.read_text()
    assert reason(said.splitlines()) == "sqlite3.DatabaseError: file is not a database"
    assert f"--database {tmp_path}/local-superlink/state.db" in said
