from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from fedsynth.cli import doctor, main
from fedsynth.cli.deployment import machine


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """(verdict, text) of every printed line."""
    return [(line[:5].strip(), line[6:]) for line in capsys.readouterr().out.splitlines()]


def test_this_machine_is_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    found = lines_of(capsys)
    assert {verdict for verdict, _ in found} <= {"ok", "warn"}
    text = "\n".join(text for _, text in found)
    for part in ("Python 3.1", "flwr 1.", "torchvision", "CUDA", "GiB of memory", "GiB of disk", "app folder"):
        assert part in text
    assert ("ok", "dataset digits: 1437 + 360 images, 10 classes") in found
    assert list(project.iterdir()) == []


def test_bad_data_fails_and_says_what_to_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"imagefolder --data-root nowhere": "there is no folder 'nowhere", "mnits": "mean 'mnist'"}
    for words, said in known.items():
        assert main(["doctor", "--dataset", *words.split()]) == 1
        verdict, text = lines_of(capsys)[-1]
        assert verdict == "fail"
        assert said in text


def findings(check: object) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.text) for finding in check()]  # type: ignore[operator]


@pytest.mark.parametrize(("python", "verdict"), [((3, 10, 13), "fail"), ((3, 14, 9), "ok"), ((3, 15, 0), "fail")])
def test_pythons(python: tuple[int, int, int], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(doctor, "metadata", lambda name: {"Requires-Python": ">=3.11,<3.15"})
    ((found, text),) = findings(doctor._python)
    assert found == verdict
    assert text.startswith(f"Python {'.'.join(map(str, python))}")
    assert ("needs <3.15,>=3.11; make a virtual environment" in text) == (verdict == "fail")


def test_missing_and_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["flwr[simulation]<2,>=1.41", "torch==9.9", "absent<2,>=1", 'pytest==1; extra == "dev"']
    versions = {"flwr": "1.41.0", "torch": "9.9+cu130", "ray": "2.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: None)
    assert findings(doctor._packages) == [
        ("fail", "absent is not installed: pip install 'absent<2,>=1'"),
        ("ok", "flwr 1.41.0, Ray 2.0"),
    ]
    versions["flwr"] = "1.40.0"
    said = "flwr 1.40.0, where <2,>=1.41 is tested: pip install 'flwr[simulation]<2,>=1.41'"
    assert findings(doctor._packages)[0] == ("warn", said)

    def no_ray(name: str) -> None:
        raise ImportError("no ray")

    monkeypatch.setattr(doctor.importlib, "import_module", no_ray)
    said = "Ray cannot be imported (no ray): pip install 'flwr[simulation]'"
    assert findings(doctor._packages)[-1] == ("fail", said)


def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", broken)
    ((verdict, text),) = findings(doctor._torchvision)
    assert verdict == "fail"
    assert "torchvision::nms does not exist" in text


@pytest.mark.parametrize(("free", "verdict"), [(100, "ok"), (2, "warn")])
def test_cuda_memory_and_disk(free: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: verdict == "ok")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Large GPU")
    ((found, text),) = findings(doctor._cuda)
    assert (found, "CUDA: 2 x Large GPU" in text) == (verdict, verdict == "ok")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * doctor.GIB))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * doctor.GIB))
    ((memory, said),) = findings(doctor._memory)
    assert memory == verdict
    assert f"{free:.1f} GiB of memory free, 2 CPU(s)" in said
    assert ("about 4.5 GiB are wanted" in said) == (verdict == "warn")
    assert findings(doctor._disk)[0][0] == verdict


def test_disks_that_runs_write_to(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named once, with what it is for."""
    places = {project: 100.0, Path(tempfile.gettempdir()): 0.5}
    disks = {path: number for number, path in enumerate(places)}
    stat = Path.stat

    def on_its_disk(path: Path, **how: bool) -> Any:
        real = stat(path, **how)
        return SimpleNamespace(st_dev=disks.get(path, 0), st_mode=real.st_mode)

    monkeypatch.setattr(Path, "stat", on_its_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=places[path] * doctor.GIB))
    here, temporary = findings(doctor._disk)
    assert here == ("ok", "100.0 GiB of disk free here")
    assert temporary[0] == "warn"
    assert temporary[1].startswith("0.5 GiB of disk free for temporary files: models and runs may not fit in /")


def test_superlinks_that_still_run_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "superlinks", lambda home: [object()])
    verdict, text = findings(doctor._flower)[-1]
    assert verdict == "warn"
    assert text.startswith("1 local SuperLink(s) still run")
    assert "'fedsynth stop' ends them" in text


HOSTILE = {
    "RAY_ADDRESS": ("10.1.2.3:6379", "warn", "runs leave it out"),
    "http_proxy": ("http://proxy:3128", "warn", "runs add them to no_proxy"),
    "TMPDIR": ("/scratch/users/somebody/jobs/12345678/tmp", "warn", "simulations keep Ray's files in"),
    "FLWR_LOCAL_CONTROL_API_PORT": ("70000", "fail", "is no port: unset it, and a free port is taken"),
    "FLWR_HOME": ("/proc/flwr", "fail", "cannot be written: set it to a folder that can"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_of_the_environment_is_in_the_way_is_found_with_what_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SHORT_ROOTS", (str(tmp_path),))
    for other in (*HOSTILE, "https_proxy", "no_proxy", "NO_PROXY", "RAY_TMPDIR", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"):
        monkeypatch.delenv(other, raising=False)
    assert [verdict for verdict, _ in findings(doctor._environment)] == ["ok"]
    value, verdict, said = HOSTILE[name]
    monkeypatch.setenv(name, value)
    ((found, text),) = findings(doctor._environment)
    assert found == verdict
    assert value in text or name in text
    assert said in text


def test_small_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "raise_file_limit", lambda: 256)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    monkeypatch.setenv("HOME", "/proc/home")
    said = [text for _, text in findings(doctor._limits)]
    assert "256 open files allowed: many silos at once need 1024; raise 'ulimit -Hn'" in said[0]
    assert "0.06 GiB free in /dev/shm" in said[1]
    assert "start it with --shm-size=2g" in said[1]
    assert "HOME = '/proc/home' cannot be written" in said[2]


def test_a_terminal_without_letters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="ascii"))
    ((verdict, text),) = findings(doctor._terminal)
    assert (verdict, "set LC_ALL=C.UTF-8" in text) == ("warn", True)
