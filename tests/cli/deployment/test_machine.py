from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsynth.cli.deployment import machine
from fedsynth.cli.deployment.flower import flower_environment
from fedsynth.cli.deployment.machine import (
    MAX_TMPDIR_BYTES,
    adjusted,
    adjustments,
    prepare_machine,
    problems,
    raise_file_limit,
)
from fedsynth.errors import UserError

LONG = "/scratch/users/somebody/jobs/12345678/tmp"
PLAIN = {"PATH": "/bin", "TMPDIR": "/tmp"}


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for a folder with a short path."""
    monkeypatch.setattr(machine, "_SHORT_ROOTS", (str(tmp_path),))
    return tmp_path


def test_nothing_is_said_of_a_plain_environment_and_what_cannot_be_shown_is_replaced() -> None:
    assert list(adjustments(PLAIN)) == []
    assert adjusted(PLAIN) == {**PLAIN, "PYTHONIOENCODING": ":backslashreplace"}
    assert adjusted({"PYTHONIOENCODING": "ascii"})["PYTHONIOENCODING"] == "ascii:backslashreplace"
    assert adjusted({"PYTHONIOENCODING": "latin-1:replace"})["PYTHONIOENCODING"] == "latin-1:replace"


def test_another_ray_is_left_out() -> None:
    (found,) = adjustments({**PLAIN, "RAY_ADDRESS": "10.1.2.3:6379"})
    assert "RAY_ADDRESS = '10.1.2.3:6379'" in found.said
    assert "RAY_ADDRESS" not in adjusted({"RAY_ADDRESS": "10.1.2.3:6379"})


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({"http_proxy": "http://p:3128"}, "127.0.0.1,localhost,::1"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "10.0.0.0/8, localhost"}, "10.0.0.0/8,localhost,127.0.0.1,::1"),
        ({"all_proxy": "p", "no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1,localhost,::1"),
        ({"http_proxy": "p", "no_proxy": "*"}, None),
        ({"http_proxy": "p", "no_proxy": "::1,localhost,127.0.0.1"}, None),
        ({"http_proxy": ""}, None),
        ({"no_proxy": "a"}, None),
    ],
)
def test_what_is_said_on_this_machine_does_not_go_through_a_proxy(given: dict[str, str], hosts: str | None) -> None:
    found = adjusted(given)
    if hosts is None:
        assert list(adjustments(given)) == []
        assert found.get("no_proxy") == given.get("no_proxy")
    else:
        assert (found["no_proxy"], found["NO_PROXY"]) == (hosts, hosts)
        assert "no_proxy lacks" in next(adjustments(given)).said


def test_the_longest_folder_for_ray_holds_a_socket_of_it(tmp_path: Path) -> None:
    assert 30 < MAX_TMPDIR_BYTES <= 41
    assert len("x" * MAX_TMPDIR_BYTES + machine._RAY_SOCKET) == 107
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(f"{tmp_path}/{'x' * 108}")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_gives_way_to_a_short_one_of_ones_own(name: str, roots: Path) -> None:
    given = {**PLAIN, name: LONG}
    (found,) = adjustments(given)
    short = Path(adjusted(given)["RAY_TMPDIR"])
    assert f"temporary folder '{LONG}': its path has {len(LONG)} bytes, and Ray's sockets leave it 39" in found.said
    assert short.parent == roots
    assert short.stat().st_mode & 0o777 == 0o700
    assert adjusted(given).get("TMPDIR") == given["TMPDIR"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new files to root too")
def test_a_folder_that_cannot_be_written_gives_way_too(roots: Path) -> None:
    (found,) = adjustments({"TMPDIR": "/proc/tmp"})
    assert "it cannot be written: simulations keep Ray's files in" in found.said


def test_folders_that_others_can_write_are_not_taken(roots: Path) -> None:
    next(adjustments({"TMPDIR": LONG}))
    (taken,) = roots.iterdir()
    taken.chmod(0o777)
    assert list(adjustments({"TMPDIR": LONG})) == []
    (said,) = problems({"TMPDIR": LONG}, roots)
    assert f"and none of {roots} can be written: set RAY_TMPDIR to a folder with a path of at most 39 bytes" in said
    taken.chmod(0o700)
    assert list(problems({"TMPDIR": LONG}, roots)) == []


def test_what_keeps_a_run_from_starting_is_said_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        name = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
        assert list(problems({**PLAIN, name: port}, tmp_path)) == [
            f"{name} = '{port}': cannot be used (Address already in use): unset it, and a free port is taken"
        ]
        monkeypatch.setenv(name, port)
        monkeypatch.setenv("TMPDIR", "/tmp")
        with pytest.raises(UserError, match=rf"{name} = '{port}'.*'fedsynth doctor' checks this machine"):
            prepare_machine(tmp_path)
    assert list(problems({**PLAIN, name: port}, tmp_path)) == []
    assert "is no port" in next(problems({**PLAIN, name: "none"}, tmp_path))
    (tmp_path / "file").write_text("")
    (said,) = problems(PLAIN, tmp_path / "file" / ".flwr")
    assert said.startswith(f"FLWR_HOME = '{tmp_path}/file/.flwr': cannot be written")


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_may_be_open_as_the_machine_allows(file_limit: tuple[int, int]) -> None:
    hard = file_limit[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    assert raise_file_limit() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    assert raise_file_limit() == most


def test_flowers_processes_are_started_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RAY_ADDRESS": "10.1.2.3:6379", "http_proxy": "p", "TMPDIR": "/tmp"}.items():
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    found = flower_environment()
    assert found["RAY_ADDRESS"] == "local"  # not a cluster that somebody has started here
    assert found["no_proxy"] == "127.0.0.1,localhost,::1"
    assert found["PYTHONIOENCODING"].endswith(":backslashreplace")
