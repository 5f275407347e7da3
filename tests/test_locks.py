from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from fedsynth.errors import UserError
from fedsynth.locks import InUseError, locked

HOLD = """
import sys, time
from pathlib import Path
from fedsynth.locks import locked
with locked(Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_told_who_holds_it_until_that_one_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = f"^the folder is in use by process {holder.pid} on .*end it$"
        with pytest.raises(InUseError, match=said), locked(lock, "the folder"):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(lock, "the folder"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    with locked(lock, "the folder"):
        pass


def test_thread_waits_for_another(tmp_path: Path) -> None:
    inside, seen = threading.Event(), []

    def second() -> None:
        inside.set()
        with locked(tmp_path / ".lock", "it", wait=60):
            seen.append("second")

    with locked(tmp_path / ".lock", "it"):
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait()
        seen.append("first")
    thread.join()
    assert seen == ["first", "second"]


def test_disk_without_locks_and_folder_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with (
        mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")),
        pytest.raises(UserError, match=r"\.lock' cannot be locked: No locks available; use a folder on a local disk"),
        locked(tmp_path / ".lock", "it"),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="a file stands where a folder is needed"),
        locked(tmp_path / "file/.lock", "it"),
    ):
        pass
