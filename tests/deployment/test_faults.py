"""What goes wrong in a deployment, for real: minutes long, and so apart (``make test-deployment``)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import Deployment, classes_of
from real_silos import write_digits, write_silos
from tiny_runs import images_of

from fedsynth.output import RunFolder

SILOS = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}
STOCK = "east"
"""For this one Flower starts a process for every message at first, which takes ten seconds."""


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A link with three silos that stay for all tests, in their order."""
    folder = tmp_path_factory.mktemp("faults")
    write_silos(folder / "images", SILOS)
    deployment = Deployment(folder)
    try:
        deployment.start_link()
        deployment.register(*SILOS)
        for name in SILOS:
            start_silo(deployment, name, warm=name != STOCK)
        yield deployment
    finally:
        deployment.close()
        assert deployment.left() == []


@pytest.fixture(scope="module")
def whole(link: Deployment) -> RunFolder:
    """An uninterrupted run in which one silo is not warm: the same images come of it."""
    return link.run("whole", dfd_rounds=5)


@pytest.fixture(scope="module")
def warm_link(link: Deployment) -> Deployment:
    """The same with warm silos only."""
    link.stop(STOCK)
    start_silo(link, STOCK)
    return link


def start_silo(link: Deployment, name: str, *words: str, warm: bool = True) -> None:
    link.start_silo(name, link.folder / "images" / name, *(["--warm"] if warm else []), *words)


def rounds_done(link: Deployment, name: str) -> int:
    return len(RunFolder(link.folder / "runs" / name).read_metrics())


def test_link_that_is_killed_and_restarted_ends_in_the_dataset_of_an_uninterrupted_run(
    whole: RunFolder, warm_link: Deployment
) -> None:
    warm_link.start_run("broken", dfd_rounds=5)
    warm_link.wait("broken", lambda: rounds_done(warm_link, "broken") >= 1)
    warm_link.kill("link")
    assert warm_link.ended("broken") != 0
    broken = RunFolder(warm_link.folder / "runs" / "broken")
    assert 1 <= rounds_done(warm_link, "broken") < 5
    assert not broken.results.exists()
    warm_link.start_link()
    warm_link.start("again", "run", "--resume", "runs/broken", "--superlink", "link")
    warm_link.finish_run("again", folder="broken")
    assert [row["round"] for row in broken.read_metrics()] == [1, 2, 3, 4, 5]
    assert images_of(broken) == images_of(whole)
    assert len(images_of(broken)) == 60


def test_silo_killed_in_a_round_is_named_and_the_run_goes_on(warm_link: Deployment) -> None:
    warm_link.start_run("gone", dfd_rounds=12)
    warm_link.wait("gone", lambda: rounds_done(warm_link, "gone") >= 2)
    warm_link.kill("north")
    run = warm_link.finish_run("gone")
    absent = [row["attendance"]["north"].get("left-out") for row in run.read_metrics() if "north" in row["attendance"]]
    assert absent[:2] == [None, None]
    assert absent[-1]
    assert "north" in run.log.read_text().split("left out")[0].splitlines()[-1]
    assert list(classes_of(run)) == ["0", "1", "2", "3"]


def test_late_silo_is_waited_for(warm_link: Deployment) -> None:
    warm_link.start_run("late", strategy="fedavg")
    warm_link.wait("late", lambda: "waiting for 3 silos" in warm_link.log("late"))
    start_silo(warm_link, "north")
    run = warm_link.finish_run("late")
    assert sorted(run.read_metrics()[0]["attendance"]) == ["east", "north", "south"]
    assert classes_of(run) == {"0": 15, "1": 15, "2": 15, "3": 15}
    assert "north: train, round 2 answered after" in warm_link.log("north")


def test_silo_that_never_comes_ends_the_run_with_a_message(warm_link: Deployment) -> None:
    warm_link.start_run("short", num_clients=4, node_timeout=5)
    assert warm_link.ended("short") != 0
    assert "3 of num-clients = 4 silos connected within node-timeout = 5 s" in warm_link.log("short")


def test_wrong_authority_and_missing_registration_are_refused(warm_link: Deployment) -> None:
    warm_link.command("link", "init", "--folder", "other")
    warm_link.command("silo", "init", "--folder", "silo-stranger")
    data = write_digits(warm_link.folder / "strange", (0, 1), 3)
    for authority in ("other/ca.crt", "link/ca.crt"):
        warm_link.start_silo("stranger", data, authority=authority)
        assert warm_link.ended("stranger") != 0
        assert "305" in warm_link.log("stranger")


def test_slow_silo_is_left_out_of_its_rounds_by_name(warm_link: Deployment) -> None:
    warm_link.start_run("slow", dfd_rounds=6, round_timeout=10.0)
    warm_link.wait("slow", lambda: rounds_done(warm_link, "slow") >= 1)
    with warm_link.paused("north"):
        run = warm_link.finish_run("slow")
    assert "no answer in time from north" in run.log.read_text()
    left_out = [
        row["attendance"]["north"].get("left-out") for row in run.read_metrics() if "north" in row["attendance"]
    ]
    assert "no answer in time" in left_out
    assert list(classes_of(run)) == ["0", "1", "2", "3"]


@pytest.fixture
def wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that moves the clock of the processes that are started from then on."""
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
    warm_link: Deployment, wrong_clock: Callable[[int], None]
) -> None:
    warm_link.stop("south")
    for seconds, said in ((60, "s ahead of the clock of localhost"), (-400, "s behind the clock of localhost")):
        wrong_clock(seconds)
        start_silo(warm_link, "south")
        assert warm_link.ended("south") == 2
        assert said in warm_link.log("south")
    wrong_clock(-200)
    start_silo(warm_link, "south")
    wrong_clock(0)
    run = warm_link.run("clocks", seed=5)
    assert all("left-out" not in row["attendance"]["south"] for row in run.read_metrics())
    assert list(classes_of(run)) == ["0", "1", "2", "3"]
    # The library goes with this test, and a process of the silo started later would tell another time than the rest.
    warm_link.stop("south")
    start_silo(warm_link, "south")


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


def test_silo_with_a_full_disk_is_named_and_takes_part_when_there_is_space(
    warm_link: Deployment, small_disk: Path
) -> None:
    warm_link.stop("east")
    start_silo(warm_link, "east", "--state-path", str(small_disk))
    full = warm_link.run("full", seed=4)
    assert f"east: UserError: state folder '{small_disk}/east': no space left on that disk" in full.log.read_text()
    # Nobody else holds class 3.
    assert list(classes_of(full)) == ["0", "1", "2"]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert list(classes_of(warm_link.run("space", seed=4))) == ["0", "1", "2", "3"]
