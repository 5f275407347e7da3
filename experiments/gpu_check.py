"""What ten silos reach on one GPU: ``experiments/gpu-check.sh`` (ten minutes at most; ``--quick``: tiny, anywhere).

(1) One network of the paper's size (Hahn & Lee 2025: 11.7 M weights, 32x32, batches of 32) alone on the device: steps a
    second and peak memory with single precision and bf16, channels-last and torch.compile.
(2) Ten simulated silos of 300 MNIST images at once on it, paper's recipe and network, bf16: dfd, pooled (with the same
    models) and fedavg, with as many steps as the time allows: steps a second of a silo, memory of a silo, phases,
    measures of the images.

What no longer fits into the time is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.common import machine_facts, publish
from experiments.benchmarks.flower_runs import synthesise
from fedsynth.config import RECIPES, Scalar, Training
from fedsynth.diffusion import TrainingState, build_unet, train
from fedsynth.errors import RunError
from fedsynth.spec import ImageSpec

Settings = dict[str, Scalar]

SPEC = ImageSpec(1, 32, tuple("0123456789"))
START_SECONDS = 60.0
"""What a run takes besides its training, at least: starting Flower and Ray, sampling, measuring."""
MOST_STEPS = 10_000
"""Steps of a silo in the paper."""
_ROUNDS = 10

_MEASURES = ("accuracy-cnn", "frechet-distance", "coverage", "copied-share")


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Attributes:
        total: seconds for everything.
        variant: seconds for one way to train a network alone.
        silos: in the simulation.
        model: settings of the network.
        run: settings of every run.
    """

    total: float
    variant: float
    silos: int
    model: Settings
    run: Settings = field(default_factory=dict)

    @property
    def channels(self) -> tuple[int, ...] | None:
        """Channels of each level, None for the preset's."""
        given = self.model.get("block-out-channels")
        return None if given is None else tuple(int(word) for word in str(given).split(","))


FULL = Size(570.0, 8.0, 10, {"model": "mnist"}, {"num-samples": 1000})
QUICK = Size(
    3600.0,
    0.5,
    2,
    {"model": "small", "block-out-channels": "4,4,4"},
    {"num-samples": 20, "dfd-rounds": 3, "sampling-steps": 3, "evaluate": False, "screening": False},
)


def main() -> None:
    """Measure everything and print it as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny, also without a GPU: shows that it works, no more")
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw; without it digits stand in")
    parser.add_argument("--output", type=Path, help="folder for gpu.md and gpu.json (default: only print)")
    options = parser.parse_args()
    if not (options.quick or torch.cuda.is_available()):
        parser.error("no CUDA device is seen: --quick shows on the CPU that everything works")
    size, begun = (QUICK if options.quick else FULL), time.monotonic()
    alone = [_alone(size, *variant) for variant in _variants()]
    rate = max((row["steps a second"] for row in alone if row["precision"] != "single"), default=0.0)
    rate = rate or max(row["steps a second"] for row in alone)
    with tempfile.TemporaryDirectory(prefix="fedsynth-gpu-") as scratch:
        runs = _runs(size, Path(scratch), _data(options.data_root), rate / size.silos, begun + size.total)
    facts = {**machine_facts(), "device": _device_name(), "minutes": round((time.monotonic() - begun) / 60, 1)}
    rows = [_cells(row) for row in [*alone, *runs]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [{name: row.get(name, "") for name in columns} for row in rows]
    publish("gpu", facts, table, {"alone": alone, "runs": runs}, options.output)


def _variants() -> Iterator[tuple[str, bool, bool]]:
    """Yield precision, channels-last and compiled."""
    yield "single", False, False
    if torch.cuda.is_available():
        for channels_last, compiled in ((False, False), (True, False), (True, True)):
            yield "bf16", channels_last, compiled
    else:
        yield "single", True, False


def _alone(size: Size, precision: str, channels_last: bool, compiled: bool) -> dict[str, Any]:
    """Train one network for a while; a first step, in which a compiler works, is not counted."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    row: dict[str, Any] = {
        "what": "a network alone" + (", channels-last" if channels_last else "") + (", compiled" if compiled else ""),
        "precision": precision,
    }
    unet = build_unet(str(size.model["model"]), SPEC, torch.Generator().manual_seed(0), size.channels).to(device)
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    if compiled:
        unet.compile()
    state = TrainingState(unet, RECIPES["paper"], torch.Generator().manual_seed(1), MOST_STEPS)
    images, labels = torch.rand(300, *SPEC.shape) * 2 - 1, torch.arange(300) % len(SPEC.classes)
    config = Training(mixed_precision="bf16" if precision == "bf16" else "no")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    try:
        train(state, images, labels, config, 3)
    except Exception as error:  # a compiler may be missing: the rest is measured all the same
        return row | {"steps a second": 0.0, "note": f"failed: {type(error).__name__}"}
    row["seconds of the first 3 steps"] = time.monotonic() - begun
    begun = time.monotonic()
    done = len(train(state, images, labels, config, MOST_STEPS, deadline=begun + size.variant))
    row["steps a second"] = done / (time.monotonic() - begun)
    if cuda:
        row["memory of a silo, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def _runs(size: Size, scratch: Path, data: Settings, rate: float, end: float) -> list[dict[str, Any]]:
    """Run the strategies one after the other; ``rate``: steps a second of a silo if none waited for another."""
    found: list[dict[str, Any]] = []
    # Pooled finds the models that dfd has trained.
    shares = {"dfd": 0.5, "pooled": 0.0, "fedavg": 0.9}
    steps = 0
    for strategy, share in shares.items():
        left = end - time.monotonic() - START_SECONDS
        if left < 0:
            found.append({"what": strategy, "note": "left out: no time left"})
            continue
        if strategy != "pooled":
            affordable = int(share * (left - (START_SECONDS if strategy == "dfd" else 0.0)) * rate)
            steps = max(_ROUNDS, min(MOST_STEPS, affordable) if size is FULL else _ROUNDS)
        found.append(_run(size, scratch, data, strategy, steps))
    return found


def _run(size: Size, scratch: Path, data: Settings, strategy: str, steps: int) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    settings: Settings = {
        **data,
        **size.model,
        **size.run,
        "strategy": strategy,
        "recipe": "paper",
        "num-clients": size.silos,
        "samples-per-client": 300 if data["dataset"] == "mnist" else 100,
        "train-steps": steps,
        "device": "auto" if cuda else "cpu",
        "mixed-precision": "bf16" if cuda else "no",
    }
    if strategy == "fedavg":
        settings["num-rounds"] = _ROUNDS
    if strategy != "dfd":
        for key in ("dfd-rounds", "screening"):
            settings.pop(key, None)
    row: dict[str, Any] = {"what": strategy, "precision": str(settings["mixed-precision"]), "steps of a silo": steps}
    begun = time.monotonic()
    try:
        with _memory_watched() as peak:
            run = synthesise(scratch, strategy, settings)
    except RunError as error:
        log = scratch / f"{strategy}.log"
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.is_file() else str(error)
        return row | {"note": "failed, see gpu.json", "log": said}
    results = run.read_results() or {}
    seconds = results["seconds-by-phase"]
    row |= {"command, s": time.monotonic() - begun, "seconds by phase": seconds}
    spent = seconds["rounds"] if strategy == "fedavg" else seconds["training"]
    if strategy != "pooled":
        row["steps a second"] = steps / spent
    if cuda:
        row["memory of a silo, GB"] = peak[0] / size.silos / 1e9
    return row | {name: results[name] for name in _MEASURES if name in results}


@contextlib.contextmanager
def _memory_watched() -> Iterator[list[float]]:
    """Give a list whose one number is the most memory, in bytes, that processes took on the device meanwhile."""
    peak, over = [0.0], threading.Event()
    if not torch.cuda.is_available():
        yield peak
        return
    before = torch.cuda.mem_get_info()[0]

    def watch() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], float(before - torch.cuda.mem_get_info()[0]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _data(root: Path | None) -> Settings:
    if root is None:
        return {"dataset": "digits", "image-size": 32}
    return {"dataset": "mnist", "data-root": str(root.absolute())}


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _cells(row: dict[str, Any]) -> dict[str, str]:
    phases = row.get("seconds by phase", {})
    shown = {name: value for name, value in row.items() if name not in ("seconds by phase", "log")}
    if phases:
        shown["seconds by phase"] = ", ".join(f"{phase} {spent:.0f}" for phase, spent in phases.items())
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in shown.items()}


if __name__ == "__main__":
    main()
