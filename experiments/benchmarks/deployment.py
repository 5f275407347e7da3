"""What a cooperative round costs in a deployment: ``python -m experiments.benchmarks.deployment [--quick]``.

Three silos as separate processes on this machine, without TLS, asked for the noise predictions of a tiny network, so
that nearly all of a round is the way there and back, or for its weights, as in averaging. The ClientApp imports torch
and diffusers, as every real one does.

stock: ``flower-supernode``, which starts a process for every message. warm: ``python -m clients.warm.warm_silo``,
with the server's ``fast-replies`` and without; two streams: a silo's samples come in two messages
that are under way together.

Overhead is the time of a round less that of the silo that worked longest. Figures are medians without the first round
of a run, since other work on the machine makes some rounds many times slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.common import machine_facts, publish, spread
from experiments.benchmarks.loopback import Loopback
from fedsynth.config import Scalar

SILOS = 3
_APP = Path(__file__).with_name("deployed_app")

Rounds = list[dict[str, float]]


@dataclass(frozen=True)
class Way:
    """One way of running a silo."""

    warm: bool
    fast_replies: bool = False
    streams: int = 1
    weights: bool = False


WAYS: Mapping[str, Way] = {
    "stock": Way(warm=False),
    "warm, server as it comes": Way(warm=True),
    "warm": Way(warm=True, fast_replies=True),
    "warm, two streams": Way(warm=True, fast_replies=True, streams=2),
    "warm, weights both ways": Way(warm=True, fast_replies=True, weights=True),
}


def main() -> None:
    """Measure every way of running the silos and print them as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, no more")
    parser.add_argument("--num-samples", type=int, default=30, help="synthetic images of a round (default: 30)")
    parser.add_argument("--output", type=Path, help="folder for deployment.md and .json (default: only print)")
    options = parser.parse_args()
    facts = machine_facts()
    seconds: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory(prefix="fedsynth-deployment-") as folder:
        for warm in (True, False):
            rounds = (10 if warm else 2) if options.quick else (40 if warm else 6)
            seconds |= _federation(Path(folder) / f"warm-{warm}", warm, rounds, options.num_samples)
    facts["silos"], facts["samples"] = SILOS, options.num_samples
    publish("deployment", facts, _table(seconds), seconds, options.output)


def _federation(folder: Path, warm: bool, rounds: int, num_samples: int) -> dict[str, Rounds]:
    """Run the app once for every way that has the same silos; return its rounds by way."""
    folder.mkdir()
    seconds = {}
    with Loopback(folder) as federation:
        for silo in range(SILOS):
            federation.start_silo(f"silo-{silo}", warm=warm)
        for number, (name, way) in enumerate(WAYS.items()):
            if way.warm == warm:
                output = folder / f"rounds-{number}.json"
                config: dict[str, Scalar] = {"silos": SILOS, "rounds": rounds, "num-samples": num_samples}
                config |= {"output": str(output), "streams": way.streams, "weights": way.weights}
                config["fast-replies"] = way.fast_replies
                federation.run(f"run-{number}", _APP, config, timeout=600.0 + 120.0 * rounds)
                seconds[name] = json.loads(output.read_text(encoding="utf-8"))[1:]
                print(f"{name}: {_said([row['seconds'] for row in seconds[name]])} s per round", flush=True)
    return seconds


def _table(seconds: Mapping[str, Rounds]) -> list[dict[str, str]]:
    stock = statistics.median(_overhead(seconds["stock"]))
    return [_row(name, seconds[name], stock) for name in WAYS]


def _row(name: str, rounds: Rounds, stock: float) -> dict[str, str]:
    overhead = _overhead(rounds)
    aim = {"warm": "<= 0.5 s per round, >= 10 times less overhead"}.get(name, "")
    return {
        "silos": name,
        "rounds": str(len(rounds)),
        "s per round, median (min-max)": _said([row["seconds"] for row in rounds]),
        "overhead, s": _said(overhead),
        "stock overhead / this": f"{stock / statistics.median(overhead):.1f}",
        "aim": aim,
    }


def _overhead(rounds: Rounds) -> list[float]:
    return [row["seconds"] - row["silo-seconds"] for row in rounds]


def _said(seconds: list[float]) -> str:
    summary = spread(seconds)
    return f"{summary['median']:.2f} ({summary['min']:.2f}-{summary['max']:.2f})"


if __name__ == "__main__":
    main()
