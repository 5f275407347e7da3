"""What the server computes of the silos' answers has the same bits on every CPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hand_made_models import play

from clients.replicating import LAST_BITS
from fedsynth.averaging.krum import krum_scores, squared_distances
from fedsynth.config import RunConfig
from fedsynth.diffusion import initial_unet
from fedsynth.mixture import compose
from fedsynth.mixture.constant_weights import constant_weights
from fedsynth.replicas.content_ids import content_id
from fedsynth.spec import ImageSpec
from strategies import STRATEGIES

STRATEGY_OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {"sample_from": "ema", "server_ema_decay": 0.7},
    "fedtrimmedavg": {},
    "bulyan": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1},
    "fedavgm": {},
    "fedadagrad": {},
    "fedadam": {},
    "fedyogi": {},
}

CPUS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE": {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""What the libraries are told to take the CPU for. None newer than AVX2: instructions that are lacking are a crash."""


def test_two_other_kinds_of_cpu_give_the_bits_of_this_one() -> None:
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = {
        cpu: subprocess.Popen(
            [sys.executable, __file__], env=os.environ | path | told, stdout=subprocess.PIPE, text=True
        )
        for cpu, told in CPUS.items()
    }
    expected, weights = hashes(), first_weights()
    found = {cpu: json.loads(process.communicate()[0]) for cpu, process in processes.items()}
    first = {cpu: said.pop("first weights") for cpu, said in found.items()}
    assert found == dict.fromkeys(CPUS, expected)
    # Drawn numbers are not: parties of a replicated run compare them as numbers.
    for drawn in first.values():
        assert drawn == pytest.approx(weights, rel=LAST_BITS / 2, abs=LAST_BITS / 2)


def first_weights() -> list[float]:
    """Of a layer of every run's first network."""
    config = RunConfig.from_run_config({"block-out-channels": "8,8", "layers-per-block": 1})
    state = initial_unet(config, ImageSpec(1, 8, ("a", "b"))).state_dict()
    return [float(value) for name in sorted(state)[:4] for value in state[name].flatten()]


def hashes() -> dict[str, str]:
    """One per result; lengths are no multiple of any vector's. rand() itself has the same bits, randn() has not."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, options in STRATEGY_OPTIONS.items():
        strategy = STRATEGIES[name](**options)
        # Double precision: in single precision rounding hides almost every difference.
        weights = {"weight": torch.rand(4099, generator=generator, dtype=torch.float64)}
        for number in (1, 2):
            models = [{"weight": weights["weight"] + torch.rand(4099, generator=generator)} for _ in range(7)]
            weights = play(strategy, number, weights, models, range(100, 191, 13))
        average = strategy.state_dict()["average"] or {}
        found[name] = digest(*weights.values(), *average.values())
    distances = squared_distances([{"weight": row} for row in torch.rand(9, 4099, generator=generator)])
    found["distances"] = digest(distances)
    distances = torch.rand(37, 37, generator=generator, dtype=torch.float64)
    found["scores"] = digest(krum_scores(distances, 2))
    eps, shares = torch.rand(7, 5, 1, 9, 9, generator=generator), torch.rand(7, 5, generator=generator)
    found["compose"] = digest(compose(eps, shares))
    counts = (torch.rand(7, 3, generator=generator) * 90).long() + 1
    constant = constant_weights("class", counts, torch.tensor([0, 2, 1, 1, 0]), 0.3)
    # What aggregators of noise predictions sign.
    found["certified"] = content_id({"composed": compose(eps, constant)})
    return found


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the bytes."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


if __name__ == "__main__":
    print(json.dumps({**hashes(), "first weights": first_weights()}))
