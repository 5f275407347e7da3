"""What a secure sum costs: ``python -m experiments.benchmarks.secure_sums``.

Ten silos, noise predictions for 1,000 samples of 8×8 and of 32×32×3 numbers drawn from a normal distribution, one
round in this process without messages: CPU seconds of one silo (answer and reveal) and of the server, what they send
beside the predictions themselves, and how far the mean prediction is from the one of a server that sees every answer.
Then whole rounds of cooperative inference on digits, all in this process, with and without sums.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fedsynth.api.in_process_run import begin_run
from fedsynth.config import Scalar
from fedsynth.messages import MaskedRequest
from fedsynth.privacy.sums import PublicKeys, SecretKeys, ServerSide, SiloSide, sum_terms

NUM_SILOS = 10
NUM_SAMPLES = 1000
SHAPES = ((1, 8, 8), (3, 32, 32))


@dataclass(frozen=True)
class Cost:
    """One round.

    Attributes:
        silo_ms: CPU milliseconds of a silo, the mean.
        server_ms: of the server, from closing the list to the sum.
        extra_bytes: that one silo sends beside four bytes a number.
        error: root mean square error of the mean prediction.
    """

    silo_ms: float
    server_ms: float
    extra_bytes: int
    error: float


def measure(shape: tuple[int, ...], absent: Collection[int] = (), num_samples: int = NUM_SAMPLES) -> Cost:
    """Run one round.

    Args:
        shape: (C, H, W) of a sample.
        absent: silos, by number, that drop out.
        num_samples: samples asked about.
    """
    rng = np.random.default_rng(0)
    keys = {f"silo-{k}": SecretKeys.generate() for k in range(NUM_SILOS)}
    public: dict[str, PublicKeys] = {name: own.public for name, own in keys.items()}
    answers = {name: rng.standard_normal((num_samples, *shape)).astype(np.float32) for name in keys}
    weights = torch.full((NUM_SILOS, 1), 1 / NUM_SILOS)
    question = MaskedRequest(
        run_token="benchmark",
        attempt="first",
        samples=torch.zeros(num_samples, *shape),
        labels=torch.zeros(num_samples, dtype=torch.int64),
        timestep=500,
        participants=tuple(public),
        keys=tuple(keys.text for keys in public.values()),
        weights=weights,
    )
    terms = sum_terms(question, 0, public)
    sides = {name: SiloSide(name, own, public) for name, own in keys.items()}
    server = ServerSide(terms, public)
    left = [name for k, name in enumerate(keys) if k not in absent]
    start = time.process_time()
    given = {name: sides[name].answer(terms, answers[name], terms.row(name)[0]) for name in left}
    silo = time.process_time() - start
    extra = 0
    for name, answer in given.items():
        extra = sum(map(len, [*answer.sealed.values(), *answer.confirmations.values(), answer.commitment]))
        server.add_answer(name, answer)
    start = time.process_time()
    server.close()
    serving = time.process_time() - start
    if server.dropped:
        for name in left:
            server.add_signature(name, sides[name].sign(terms, server.survivors))
    for name in left:
        start = time.process_time()
        revealed = sides[name].reveal(terms, server.survivors, server.signatures, server.sealed_for(name))
        silo += time.process_time() - start
        server.add_revealed(name, revealed)
    start = time.process_time()
    total = server.total()
    serving += time.process_time() - start
    mean = np.mean([answers[name].ravel() for name in left], axis=0, dtype=np.float64)
    error = float(np.sqrt(np.mean((total * NUM_SILOS / len(left) - mean) ** 2)))
    extra += sum(map(len, [*revealed.shares.values(), *revealed.seeds.values()]))
    return Cost(1e3 * silo / len(left), 1e3 * serving, extra, error)


def round_seconds(secure: bool, num_silos: int, num_samples: int, **changes: Scalar) -> float:
    """Return CPU seconds of a round of constant weights, of server and silos together, the mean of three.

    Args:
        secure: whether the server sees sums only.
        num_silos: with 60 images of 8×8 digits each, and a model of one step of training.
        num_samples: all asked of all silos.
        changes: further keys, in snake case.
    """
    with TemporaryDirectory() as state:
        settings: dict[str, Scalar] = {
            **{"alpha": 1000.0, "copy-check": False, "early-stop": False, "dfd-rounds": 3, "num-clients": num_silos},
            **{"num-samples": num_samples, "samples-per-client": 60, "train-steps": 1, "state-dir": state},
            **{"screening": False, "weights": "constant", "max-silo-weight": 0.5, "secure-aggregation": secure},
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        run = begin_run(settings)
        start = time.process_time()
        run.rounds()
        return (time.process_time() - start) / 3


def main() -> None:
    """Print two tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| numbers | drop out | silo, ms | server, ms | beside 4 bytes a number | error |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        for absent in ((), (3,), (3, 5, 7)):
            cost = measure(shape, absent)
            size = f"{NUM_SAMPLES} × {' × '.join(map(str, shape))}"
            print(
                f"| {size} | {len(absent)} | {cost.silo_ms:.1f} | {cost.server_ms:.1f} | {cost.extra_bytes} bytes"
                f" | {cost.error:.1e} |"
            )
    print("\n| network | silos | samples | CPU s a round | in sums | ratio |\n|---|---|---|---|---|---|")
    for network, given, silos, samples in (
        ("default", {}, 5, 200),
        ("8,8", {"block_out_channels": "8,8"}, 10, 100),
    ):
        plain, sums = (round_seconds(secure, silos, samples, **given) for secure in (False, True))
        print(f"| {network} | {silos} | {samples} | {plain:.2f} | {sums:.2f} | {sums / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
