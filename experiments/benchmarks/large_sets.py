"""What memory training on 100,000 images of 64x64 takes: ``python -m experiments.benchmarks.large_sets`` (Linux only).

One silo reads 1.2 GB of noise from a file of MedMNIST's kind, checks it for duplicates, trains a small network for a
few steps with early stopping and copy check, and the union of all silos is gathered as centralised training does.
Measured are the peaks of anonymous memory (``RssAnon``), which the system cannot drop, and of the whole resident set
(``VmHWM``), with the pages of mapped files and of libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from clients.models.local_model import LocalModel
from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.data.medmnist_index import MEDMNIST
from fedsynth.units import human_bytes

SIDE, STEPS = 64, 20
_ROWS = 1000


@dataclass(frozen=True)
class LargeSet:
    """What was measured.

    Attributes:
        pixels: bytes of the decoded training images.
        before: bytes of anonymous memory of a process that has imported everything.
        peak: their peak while it loads, trains and checks.
        resident: peak of its resident set.
        seconds: what that took.
        steps: optimiser steps done.
    """

    pixels: int
    before: int
    peak: int
    resident: int
    seconds: float
    steps: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="training images (default: 100000)")
    parser.add_argument("--output", type=Path, help="folder for large_sets.md and .json (default: only print)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = in_fresh_process(train_large_set, Path(folder), options.images)
    row = {
        "images": f"{options.images:,}",
        "decoded": human_bytes(measured.pixels),
        "anonymous before": human_bytes(measured.before),
        "anonymous peak": human_bytes(measured.peak),
        "resident peak": human_bytes(measured.resident),
        "seconds": f"{measured.seconds:.0f}",
    }
    publish("large_sets", machine_facts(), [row], asdict(measured), options.output)
    return 0


def train_large_set(folder: Path, images: int) -> LargeSet:
    """Write a set of noise to ``folder``, and train on it; call it in a fresh process."""
    _write(folder, images)
    keys: dict[str, Scalar] = {
        "dataset": "medmnist:pathmnist",
        "data-root": str(folder),
        "image-size": SIDE,
        "partition": "iid",
        "num-clients": 1,
        "block-out-channels": "8,8",
        "layers-per-block": 1,
        "train-steps": STEPS,
        "batch-size": 8,
        "state-dir": str(folder / "state"),
    }
    config = RunConfig.from_run_config(keys)
    before, start = _anonymous(), time.monotonic()
    with _peak() as peak:
        federation = load_federation(config)
        federation.describe_duplicates()
        silo = federation.silo(0, config)
        model = LocalModel(silo, federation.spec, config, folder / "state" / "silo")
        while not model.finished:
            steps = model.train_slice(600.0).steps
        model.copied_share()
        federation.union(config).fingerprint()
    seconds = time.monotonic() - start
    return LargeSet(federation.train.images.nbytes, before, peak[0], _status("VmHWM"), seconds, steps)


def _write(folder: Path, images: int) -> None:
    path = folder / f"pathmnist_{SIDE}.npz"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for fold, count in (("train", images), ("test", _ROWS)):
            with archive.open(f"{fold}_labels.npy", "w") as file:
                npy.write_array(file, (np.arange(count, dtype=np.uint8) % 9)[:, np.newaxis], allow_pickle=False)
            with archive.open(f"{fold}_images.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
                npy.write_array_header_1_0(file, header)
                for first in range(0, count, _ROWS):
                    file.write(rng.bytes(min(_ROWS, count - first) * SIDE * SIDE * 3))
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    # The sum of the official file cannot be that of noise.
    MEDMNIST["pathmnist"] = replace(MEDMNIST["pathmnist"], md5=(md5,) * 4)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def _anonymous() -> int:
    return _status("RssAnon")


@contextmanager
def _peak() -> Iterator[list[int]]:
    found, ended = [_anonymous()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            found[0] = max(found[0], _anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
