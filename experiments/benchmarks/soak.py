"""A silo that answers many noise queries in one process, and a server that composes many rounds of answers."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from experiments.benchmarks import resident as resident_set
from experiments.benchmarks.server_memory import SCENARIOS, Silos, run_scenario
from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.messages import EpsilonRequest, PrepareRequest
from fedsynth.spec import ImageSpec
from strategies.cooperation.dfd import DfD
from strategies.run.rounds import Round

NODE = 7


@dataclass
class Soak:
    """How a process grew.

    Attributes:
        counts: messages answered, or rounds done, so far, at each look.
        resident: resident set at that look, kB.
        growth: slope of a line through the looks after the first quarter, kB a message or round.
    """

    counts: list[int]
    resident: list[float]
    growth: float


def client_soak(num_messages: int, every: int = 10) -> Soak:
    """Answer ``num_messages`` noise queries of 20 digits with the real ClientApp; look at memory ``every`` so often.

    Raises:
        RuntimeError: the ClientApp answered with an error.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedsynth-soak-") as folder:
        silo = _Silo({"state-dir": folder, "device": "cpu", "train-steps": 1, "block-out-channels": "8,8"})
        counts, resident = [], []
        for number in range(1, num_messages + 1):
            silo.ask_for_noise(number)
            if number % every == 0:
                counts.append(number)
                resident.append(_resident_kb())
    return Soak(counts, resident, growth(counts, resident))


def server_soak(num_rounds: int, every: int = 10) -> Soak:
    """Compose ``num_rounds`` rounds of ten silos' answers about 100 images; look at memory ``every`` so often."""
    torch.set_num_threads(1)
    rounds = partial(DfD, dfd_rounds=num_rounds, sampler="ddpm", prior="size")
    scenario = replace(SCENARIOS["dfd, posterior weights"], strategy=rounds)
    counts, resident = [], []

    def look(done: Round) -> None:
        if done.number % every == 0:
            counts.append(done.number)
            resident.append(_resident_kb())

    resident_set.return_freed_memory()
    run_scenario(scenario, Silos(scenario, 100, 10), 100, [look])
    return Soak(counts, resident, growth(counts, resident))


def growth(counts: list[int], resident: list[float]) -> float:
    """Least-squares slope of ``resident`` over ``counts``, without the first quarter: the warm-up."""
    last = [n > counts[-1] / 4 for n in counts]
    slope, _ = np.polyfit(list(itertools.compress(counts, last)), list(itertools.compress(resident, last)), 1)
    return float(slope)


def _resident_kb() -> float:
    return float(psutil.Process().memory_info().rss / 1e3)


class _Silo:
    """The first silo of a federation of ten, with a model of its own, and the server's side of the conversation."""

    def __init__(self, settings: dict[str, Scalar]) -> None:
        # Flower sets these when it starts an app; a message cannot be built without them.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._config = {**RunConfig().to_run_config(), **settings}
        self._context = Context(1, NODE, {"partition-id": 0, "num-partitions": 10}, RecordDict(), self._config)
        self._spec: ImageSpec = load_federation(RunConfig.from_run_config(self._config)).spec
        self._ask(PrepareRequest(spec=self._spec, train_seconds=60.0).to_message(NODE))

    def ask_for_noise(self, number: int) -> None:
        """Send the question of round ``number`` about samples it has not seen before."""
        samples, labels = torch.randn(20, *self._spec.shape), torch.arange(20) % len(self._spec.classes)
        request = EpsilonRequest(samples=samples, labels=labels, timestep=999 - number % 1000, server_round=number)
        request.reader()(self._ask(request.to_message(NODE)))

    def _ask(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = "question"
        answer = app(message, self._context)
        if answer.has_error():
            raise RuntimeError(answer.error.reason)
        return answer
