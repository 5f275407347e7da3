"""Check this machine: Python, packages, CUDA, memory, disk, environment, data; say what to do about each problem."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedsynth.cli.deployment.flower import flower_home, superlinks
from fedsynth.cli.deployment.machine import LEAST_FILES, adjustments, problems, raise_file_limit
from fedsynth.cli.options import refuse_rest
from fedsynth.config import DatasetName
from fedsynth.disk import check_writable
from fedsynth.errors import UserError
from fedsynth.sides import sides_folder

GIB = 1024**3
MEMORY_PER_WORKER = 1.5 * GIB
"""A Ray worker with torch and diffusers loaded, and a small model."""
WANTED_SHARED = GIB
"""Free memory in /dev/shm, where Ray keeps what processes hand each other."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        verdict: ``ok``, ``warn`` (works, with limits) or ``fail``.
        text: what was found, and what to do about it.
    """

    verdict: Literal["ok", "warn", "fail"]
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``doctor`` can look at a dataset too."""
    parser.add_argument("--dataset", default="digits", help="dataset to open (default: digits)")
    parser.add_argument("--data-root", default="", help="folder that holds it")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """Print every finding; return 1 if one is a failure."""
    refuse_rest("doctor", rest)
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _torchvision,
        _cuda,
        _memory,
        _disk,
        _flower,
        _environment,
        _limits,
        _terminal,
        lambda: _data(options.dataset, options.data_root),
    ]
    failed = False
    for check in checks:
        for finding in check():
            print(f"{finding.verdict:<5} {finding.text}")
            failed |= finding.verdict == "fail"
    return int(failed)


def _python() -> Iterator[Finding]:
    found, wanted = ".".join(map(str, sys.version_info[:3])), SpecifierSet(metadata("fedsynth")["Requires-Python"])
    if found in wanted:
        yield Finding("ok", f"Python {found}")
    else:
        yield Finding("fail", f"Python {found}: fedsynth needs {wanted}; make a virtual environment with such a Python")


def _packages() -> Iterator[Finding]:
    for line in requires("fedsynth") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, requirement.specifier
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("fail", f"{name} is not installed: pip install '{requirement}'")
            continue
        if not wanted.contains(found, prereleases=True):
            yield Finding("warn", f"{name} {found}, where {wanted} is tested: pip install '{requirement}'")
    try:
        importlib.import_module("ray")
        yield Finding("ok", f"flwr {version('flwr')}, Ray {version('ray')}")
    except ImportError as error:
        yield Finding("fail", f"Ray cannot be imported ({error}): pip install 'flwr[simulation]'")


def _torchvision() -> Iterator[Finding]:
    try:
        import torch
        import torchvision

        # A torchvision built for another torch imports, and fails at its first operator.
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield Finding("ok", f"torch {torch.__version__} and torchvision {torchvision.__version__} fit together")
    except (ImportError, RuntimeError) as error:
        yield Finding("fail", f"torch and torchvision do not fit ({error}): install both in one command")


def _cuda() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", f"CUDA: {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    else:
        yield Finding(
            "warn", "no CUDA device: small settings (digits, 'small' U-Net) run on the CPU, paper sizes do not"
        )


def _memory() -> Iterator[Finding]:
    free, workers = psutil.virtual_memory().available, psutil.cpu_count() or 1
    needed = MEMORY_PER_WORKER * (workers + 1)
    text = f"{free / GIB:.1f} GiB of memory free, {workers} CPU(s)"
    if free >= needed:
        yield Finding("ok", text)
    else:
        yield Finding("warn", f"{text}: about {needed / GIB:.1f} GiB are wanted; close programs or use fewer CPUs")


def _disk() -> Iterator[Finding]:
    places = {"here": Path.cwd(), "in FLWR_HOME": flower_home(), "for temporary files": Path(tempfile.gettempdir())}
    said: dict[int, Finding] = {}
    for what, place in places.items():
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        verdict: Literal["ok", "warn"] = "ok" if free > 2 * GIB else "warn"
        advice = "" if verdict == "ok" else f": models and runs may not fit in {existing}; free some space"
        said.setdefault(existing.stat().st_dev, Finding(verdict, f"{free / GIB:.1f} GiB of disk free {what}{advice}"))
    yield from said.values()


def _flower() -> Iterator[Finding]:
    try:
        yield Finding("ok", f"app folder {sides_folder()}")
    except UserError as error:
        yield Finding("fail", str(error))
    running = superlinks(flower_home())
    if running:
        yield Finding(
            "warn", f"{len(running)} local SuperLink(s) still run in {flower_home()}: 'fedsynth stop' ends them"
        )


def _environment() -> Iterator[Finding]:
    found = [Finding("fail", problem) for problem in problems(os.environ, flower_home())]
    found += [Finding("warn", adjustment.said) for adjustment in adjustments(os.environ)]
    yield from found or [Finding("ok", "environment variables: nothing in Flower's and Ray's way")]


def _limits() -> Iterator[Finding]:
    files = raise_file_limit()
    if files < LEAST_FILES:
        yield Finding(
            "warn",
            f"{files} open files allowed: many silos at once need {LEAST_FILES}; raise 'ulimit -Hn' or use fewer",
        )
    else:
        yield Finding("ok", f"{files} open files allowed")
    if (shared := Path("/dev/shm")).is_dir() and (free := shutil.disk_usage(shared).free) < WANTED_SHARED:
        yield Finding(
            "warn",
            f"{free / GIB:.2f} GiB free in {shared}: Ray then keeps what silos send on the disk, which is slower; in a"
            " container, start it with --shm-size=2g",
        )
    home = os.path.expanduser("~")
    try:
        check_writable(Path(home) / "file")
    except UserError:
        yield Finding("warn", f"HOME = '{home}' cannot be written: downloads and caches fail; set it to a folder")


def _terminal() -> Iterator[Finding]:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "λ … × é".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        yield Finding(
            "warn", f"the terminal's encoding is {encoding}: other letters are printed as numbers; set LC_ALL=C.UTF-8"
        )


def _data(dataset: DatasetName, root: str) -> Iterator[Finding]:
    from fedsynth.data import load_dataset

    try:
        train, test = load_dataset(dataset, root or None)
        yield Finding("ok", f"dataset {dataset}: {len(train)} + {len(test)} images, {len(train.classes)} classes")
    except UserError as error:
        yield Finding("fail", str(error))
