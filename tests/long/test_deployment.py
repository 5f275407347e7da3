"""Rare faults of a silo's machine, for real: a clock of its own, a full disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import Deployment, classes_of, deployed


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A link with three silos that stay for all tests, in their order."""
    silos = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}
    with deployed(tmp_path_factory.mktemp("faults"), silos) as link:
        yield link


@pytest.fixture
def wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that moves the clock of the processes that are started from then on in this test."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    library = tmp_path / "clock_offset.so"
    source = Path(__file__).with_name("clock_offset.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def move(seconds: int) -> None:
        monkeypatch.setenv("LD_PRELOAD", str(library) if seconds else "")
        monkeypatch.setenv("CLOCK_OFFSET", str(seconds))

    return move


def test_silo_with_a_clock_of_its_own_takes_part_or_is_told_why_not(
    link: Deployment, wrong_clock: Callable[[int], None]
) -> None:
    link.stop("south")
    for seconds, said in ((60, "s ahead of the clock of localhost"), (-400, "s behind the clock of localhost")):
        wrong_clock(seconds)
        link.start_silo_of("south")
        assert link.ended("south") == 2
        assert said in link.log("south")
    wrong_clock(-200)
    link.start_silo_of("south")
    wrong_clock(0)
    run = link.run("clocks", seed=5)
    assert all("left-out" not in row["attendance"]["south"] for row in run.read_metrics())
    assert list(classes_of(run)) == ["0", "1", "2", "3"]
    # The library goes with this test, and a process of the silo started later would tell another time than the rest.
    link.stop("south")
    link.start_silo_of("south")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, less than a model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_silo_with_a_full_disk_is_named_and_takes_part_when_there_is_space(link: Deployment, small_disk: Path) -> None:
    link.stop("east")
    link.start_silo_of("east", "--state-path", str(small_disk))
    full = link.run("full", seed=4)
    assert "east: UserError: state folder '…/east': no space left on that disk" in full.log.read_text()
    # Nobody else holds class 3.
    assert list(classes_of(full)) == ["0", "1", "2"]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert list(classes_of(link.run("space", seed=4))) == ["0", "1", "2", "3"]
