"""Cooperative inference parallel in time: rounds, evaluations and bytes, compared with one noise level after the other.

``python -m experiments.parallel`` prints the table. All rows of a sampler share silos, models, labels and noise: with
a tolerance of 0 the images would be the same. Silos answer in this process, so seconds are not measured; models are
trained unless they are found in ``state-dir``. Differences are those of final images in [-1, 1].
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import MetricRecord

from experiments.benchmarks.common import markdown_table, origin
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import Scalar
from fedsynth.messages import transport
from fedsynth.units import human_bytes
from strategies.conversation.exchange import Traffic
from strategies.run.rounds import Round

SAMPLERS: dict[str, dict[str, Scalar]] = {
    "ddim, constant": {"sampler": "ddim", "weights": "constant"},
    "ddim, energy": {"sampler": "ddim", "weights": "energy"},
    "ddpm, posterior": {"sampler": "ddpm", "weights": "posterior"},
}
WINDOWS = (1, 10, 20, 50)


@dataclass
class RunOutcome:
    """The rounds of one run.

    Attributes:
        samples: the images after the last round, (N, C, H, W).
        metrics: of every round.
        traffic: of the rounds alone.
    """

    samples: torch.Tensor
    metrics: list[MetricRecord]
    traffic: Traffic

    def total(self, key: str) -> float:
        """Sum of a metric over the rounds."""
        return sum(float(cast(float, row[key])) for row in self.metrics)

    def row(self, sequential: torch.Tensor) -> dict[str, str]:
        """Cells of the table, beside the images of the sequential run."""
        apart = (self.samples.clamp(-1, 1) - sequential.clamp(-1, 1)).double()
        return {
            "rounds": str(len(self.metrics)),
            "evaluations per sample": f"{self.total('function-evaluations'):.1f}",
            "down / up": f"{human_bytes(self.traffic.down)} / {human_bytes(self.traffic.up)}",
            "largest difference": f"{float(apart.abs().max()):.3g}",
            "root mean square": f"{float(apart.square().mean().sqrt()):.3g}",
        }


def run_all_rounds(settings: Mapping[str, Scalar]) -> RunOutcome:
    """Run the rounds of a strategy in this process.

    Args:
        settings: configuration keys that are not left at their defaults.
    """
    run = begin_run(settings)
    run.exchange.traffic = Traffic()
    metrics: list[MetricRecord] = []

    def keep(done: Round) -> None:
        metrics.append(done.metrics)

    arrays = run.rounds(keep)
    return RunOutcome(transport.decode(arrays["samples"]), metrics, run.exchange.traffic)


def main() -> None:
    """Run every window, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", nargs="+", default=[*SAMPLERS], choices=[*SAMPLERS])
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS[1:])
    parser.add_argument("--levels", type=int, default=50)
    parser.add_argument("--num-samples", type=int, default=200)
    parser.add_argument("--state-dir", default=".fedsynth")
    options = parser.parse_args()
    shared: dict[str, Any] = {
        **{"strategy": "dfd", "dfd-rounds": options.levels},
        **{"num-samples": options.num_samples, "state-dir": options.state_dir},
    }
    rows = []
    for name in options.samplers:
        sequential = run_all_rounds({**shared, **SAMPLERS[name]})
        rows.append({"sampler": name, "window": "1", **sequential.row(sequential.samples)})
        for window in options.windows:
            cells = run_all_rounds({**shared, **SAMPLERS[name], "parallel-levels": window}).row(sequential.samples)
            rows.append({"sampler": name, "window": str(window), **cells})
    print(f"{origin()}\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
