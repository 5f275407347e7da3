"""Hostile silos in a small real federation: which averaging strategies still learn.

Two of ten silos send NaN, their update turned around and ten times as long, or noise. Measured is the loss of the
global model on images that no silo trained on, as a ratio to the same strategy's clean run.
``python -m experiments.poisoning`` prints the table, for even and for uneven silos.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message

import clients.app
from experiments.benchmarks.common import machine_facts, publish
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.api.in_process_run import begin_run
from fedsynth.config import Scalar
from fedsynth.diffusion import codec_of, initial_unet, make_scheduler
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.messages import TrainRequest, sender_of, transport
from fedsynth.seeding import make_generator
from strategies.base import Task

HOSTILE = (2, 7)
SETTINGS: dict[str, Scalar] = {
    "block-out-channels": "16,16",
    "device": "cpu",
    "num-clients": 10,
    "num-rounds": 8,
    "partition": "iid",
    "train-steps": 160,
}
STRATEGIES: dict[str, dict[str, Scalar]] = {
    "fedavg": {},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num-malicious-nodes": 2},
    "multikrum": {"num-malicious-nodes": 2},
}

Weights = dict[str, torch.Tensor]
Attack = Callable[[Weights, Weights, torch.Generator], Weights]


def send_nan(sent: Weights, trained: Weights, generator: torch.Generator) -> Weights:
    """Send no numbers."""
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in trained.items()}


def turn_around(sent: Weights, trained: Weights, generator: torch.Generator) -> Weights:
    """Send ten times the opposite of what was learnt."""
    return {name: sent[name] - 10 * (tensor - sent[name]) for name, tensor in trained.items()}


def send_noise(sent: Weights, trained: Weights, generator: torch.Generator) -> Weights:
    """Send the received weights under noise of standard deviation 0.5."""
    return {name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator) for name, tensor in sent.items()}


ATTACKS: dict[str, Attack | None] = {
    "clean": None,
    "nan": send_nan,
    "sign-flip x10": turn_around,
    "noise": send_noise,
}


class PoisonedGrid(InProcessGrid):
    """Real silos, of which some change their weights before they answer."""

    def __init__(self, run_config: Mapping[str, Scalar], num_nodes: int, attack: Attack | None) -> None:
        super().__init__(clients.app.app, dict(run_config), num_nodes, self._poison)
        self._attack, self._sent = attack, ArrayRecord()
        self._generator = make_generator(0, "attack")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Remember the weights that go out."""
        batch = list(messages)
        if batch[0].metadata.message_type == TrainRequest.kind:
            self._sent = transport.array_record(batch[0], "arrays")
        return super().push_messages(batch)

    def _poison(self, replies: list[Message]) -> list[Message]:
        for reply in replies:
            hostile = sender_of(reply).order in HOSTILE
            if self._attack is not None and hostile and "arrays" in transport.array_names(reply):
                trained = transport.decode_tensors(transport.array_record(reply, "arrays"))
                changed = self._attack(transport.decode_tensors(self._sent), trained, self._generator)
                reply.content["arrays"] = transport.encode_tensors(changed)
        return replies


def federated_loss(strategy: str, attack: str, settings: Mapping[str, Scalar]) -> float:
    """Train a federation and return the held-out loss of its global model.

    Args:
        strategy: key of :data:`STRATEGIES`.
        attack: key of :data:`ATTACKS`.
        settings: of the run.
    """
    with tempfile.TemporaryDirectory() as state:
        flat = {**settings, **STRATEGIES[strategy], "strategy": strategy, "num-samples": 10, "state-dir": state}
        run = begin_run(flat, silos=lambda known, number: PoisonedGrid(known, number, ATTACKS[attack]))
        arrays = run.rounds()
    return held_out_loss(transport.decode_tensors(arrays), run.task)


@torch.inference_mode()
def held_out_loss(weights: Weights, task: Task, draws: int = 8) -> float:
    """Mean training loss on all silos' held-out images, over levels and noise drawn once."""
    config, federation = task.config, task.federation
    assert federation is not None
    silos = [federation.silo(k, config).holdout for k in range(config.run.num_clients)]
    codec, recipe = codec_of(config, federation.spec), config.recipe
    images = codec.encode(np.concatenate([silo.images for silo in silos])).repeat(draws, 1, 1, 1)
    labels = torch.from_numpy(np.concatenate([silo.labels for silo in silos])).repeat(draws)
    generator = make_generator(config.run.seed, "held-out-loss")
    t = torch.randint(recipe.num_train_timesteps, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    unet = initial_unet(config, federation.spec).eval()
    unet.load_state_dict(weights)
    scheduler = make_scheduler(recipe)
    predicted = unet(scheduler.add_noise(images, noise, t), t, class_labels=labels).sample
    return float(denoising_loss(predicted, images, noise, scheduler.alphas_cumprod[t], recipe).mean())


def main() -> None:
    """Run every strategy under every attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=None, help="where to write the table as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="default", choices=["default", "paper"], help="of training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, str]] = []
    details: dict[str, Any] = {}
    for partition in ("iid", "dirichlet"):
        for strategy in STRATEGIES:
            settings = {**SETTINGS, "recipe": options.recipe, "partition": partition, "seed": options.seed}
            losses = {attack: federated_loss(strategy, attack, settings) for attack in ATTACKS}
            details[f"{strategy}, {partition}"] = losses
            rows.append({"silos": partition, "strategy": strategy, **_row(losses)})
            print(rows[-1], flush=True)
    publish("poisoning", machine_facts(), rows, details, options.output_dir)


def _row(losses: Mapping[str, float]) -> dict[str, str]:
    clean = losses["clean"]
    ratios = {attack: f"{loss / clean:.2f}" for attack, loss in losses.items() if attack != "clean"}
    return {"clean loss": f"{clean:.4f}", **ratios}


if __name__ == "__main__":
    main()
