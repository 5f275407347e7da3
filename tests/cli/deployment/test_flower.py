from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedsynth.cli.deployment.flower import (
    PORT_VARIABLES,
    SIMULATION,
    flower_environment,
    flower_home,
    prepare_home,
    stop_superlinks,
    superlinks,
)
from fedsynth.cli.deployment.processes import is_alive


def test_environment_says_what_flower_must_be_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    monkeypatch.setenv("SOMETHING", "else")
    environment = flower_environment()
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(project / ".flwr")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["SOMETHING"] == "else"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    ports = [int(environment[variable]) for variable in PORT_VARIABLES]
    assert len(set(ports)) == 2
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_every_environment_has_a_token_of_its_own_for_ray(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.delenv(variable, raising=False)
    first, second = flower_environment(), flower_environment()
    assert first["RAY_AUTH_MODE"] == "token"
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert len(first["RAY_AUTH_TOKEN"]) >= 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_environment_respects_what_the_user_has_set(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "FLWR_HOME": str(project / "home"),
        "FLWR_TELEMETRY_ENABLED": "1",
        "FLWR_LOCAL_CONTROL_API_PORT": "12345",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "12346",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    }
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    environment = flower_environment()
    assert {variable: environment[variable] for variable in given} == given
    monkeypatch.setenv("FLWR_HOME", "elsewhere")
    assert flower_home() == project / "elsewhere"


def test_home_of_the_user_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine")
    prepare_home(tmp_path)
    assert (tmp_path / "config.toml").read_text() == "mine"


def pretend_superlink(home: Path) -> subprocess.Popen[bytes]:
    """A process whose command line looks like a local SuperLink of ``home``, with a child of its own."""
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']).wait()"
    words = ["flower-superlink", "--database", str(home / "local-superlink" / "state.db")]
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    deadline = time.monotonic() + 20
    while not psutil.Process(process.pid).children():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_stopping_ends_the_superlinks_of_one_home_with_their_children(tmp_path: Path) -> None:
    mine, other = pretend_superlink(tmp_path / "mine"), pretend_superlink(tmp_path / "other")
    try:
        child = psutil.Process(mine.pid).children()[0]
        assert [process.pid for process in superlinks(tmp_path / "mine")] == [mine.pid]
        assert stop_superlinks(tmp_path / "mine") == 1
        assert mine.wait(5) is not None
        psutil.wait_procs([child], timeout=5)
        assert not child.is_running()
        assert superlinks(tmp_path / "mine") == []
        assert other.poll() is None
    finally:
        assert stop_superlinks(tmp_path / "other") == 1
        other.wait(5)
    assert stop_superlinks(tmp_path / "mine") == 0


def test_stopping_ends_what_simulations_of_the_home_left_without_their_superlink(tmp_path: Path) -> None:
    """Such as Ray's processes; neither those of another home, nor what the user runs with the same ``FLWR_HOME``."""
    mine, other = {"FLWR_HOME": str(tmp_path / "mine")}, {"FLWR_HOME": str(tmp_path / "other")}
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    left, of_other, users = (
        subprocess.Popen(sleep, env={**os.environ, **environment}, start_new_session=True)
        for environment in ({**mine, SIMULATION: "1"}, {**other, SIMULATION: "2"}, mine)
    )
    try:
        assert stop_superlinks(tmp_path / "mine") == 0
        assert not is_alive(left.pid)
        assert of_other.poll() is None
        assert users.poll() is None
    finally:
        for process in (left, of_other, users):
            process.kill()
            process.wait()
