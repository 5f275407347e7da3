"""A strategy of your own: federated averaging in which every institution counts the same, however many images it has.

python examples/own_strategy.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord

import fedsynth
from fedsynth.messages import transport
from fedsynth.strategies import AveragingStrategy, Update


class EqualVotes(AveragingStrategy):
    """The plain mean of the silos' weights."""

    how = "the silos trained one diffusion model together, each counting the same"

    def combine(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        """Return the weights after a round; the updates have been checked, and are sorted by silo."""
        told = [transport.decode_tensors(update.record) for update in updates]
        mean = {name: torch.stack([weights[name].double() for weights in told]).mean(0) for name in told[0]}
        return transport.encode_tensors({name: layer.to(told[0][name].dtype) for name, layer in mean.items()})


def main(**changes: Any) -> fedsynth.Run:
    """Run it on ten very uneven silos; ``changes`` are further settings, such as ``strategy="fedavg"`` to compare."""
    settings = {"strategy": EqualVotes, "dataset": "digits", "num_clients": 10, "alpha": 0.1, "num_samples": 500}
    run = fedsynth.synthesise(**{**settings, **changes})

    for row in run.metrics:
        print(f"round {row['round']:2}  loss {row['loss']:.4f}")
    for name in ("accuracy-cnn", "real-accuracy-cnn", "coverage"):
        print(f"{name:17} {run.results.get(name, 'not measured')}")
    print(f"report {run.report}")
    return run


if __name__ == "__main__":
    main()
