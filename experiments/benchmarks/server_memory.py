"""How much memory the server needs while it aggregates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from experiments.benchmarks import resident
from fedsynth.diffusion import build_unet
from fedsynth.messages import Answer, Sender, transport
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies.averaging.fedavg import FedAvg
from strategies.base import SynthesisStrategy
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD
from strategies.run.rounds import Round, run_rounds

SPEC = ImageSpec(3, 32, tuple("abcdefghij"))
ROUNDS = 3


@dataclass
class ServerPeak:
    """Peak of one scenario.

    Attributes:
        name: key of :data:`SCENARIOS`.
        copy: bytes of the synthetic set as float32, or of the model.
        baseline: resident set before the arrays exist, bytes.
        peak: largest resident set during the rounds, bytes.
    """

    name: str
    copy: int
    baseline: int
    peak: int

    @property
    def copies(self) -> float:
        """Copies held at the peak."""
        return (self.peak - self.baseline) / self.copy


@dataclass
class Scenario:
    """What is aggregated, and by whom.

    Attributes:
        strategy: makes a fresh strategy.
        arrays: makes the arrays of the first round, from the number of samples.
        reply: name of the array record of an answer.
        at_once: whether all answers lie ready when the server looks for the first time.
    """

    strategy: Callable[[], SynthesisStrategy]
    arrays: Callable[[int], ArrayRecord]
    reply: str
    at_once: bool = False


def server_peak(name: str, num_samples: int, num_silos: int, return_freed: bool) -> ServerPeak:
    """Run three rounds with answers of the right size; call it in a fresh process.

    Args:
        name: key of :data:`SCENARIOS`.
        num_samples: images of 3×32×32 in the synthetic set; without effect on models.
        num_silos: silos that answer.
        return_freed: give every freed block above 64 kB back to the system at once, so that the peak is what was
            held; otherwise as glibc does, whose peak holds free memory too.
    """
    if return_freed:
        resident.return_freed_memory()
    scenario = SCENARIOS[name]
    run_scenario(scenario, Silos(scenario, 10, num_silos), 10)  # everything is imported and set up
    silos = Silos(scenario, num_samples, num_silos)
    baseline = resident.reset_peak()
    run_scenario(scenario, silos, num_samples)
    return ServerPeak(name, silos.answer_bytes, baseline, resident.peak())


def run_scenario(
    scenario: Scenario, silos: Silos, num_samples: int, observers: Sequence[Callable[[Round], None]] = ()
) -> None:
    """Run all rounds.

    Args:
        scenario: what is aggregated.
        silos: who answers.
        num_samples: images in the synthetic set.
        observers: called after every round.
    """
    # Flower sets these when it starts an app; a message cannot be built without them.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    exchange = Exchange(cast(Grid, silos), timeout=60.0)
    run_rounds(scenario.strategy(), exchange, scenario.arrays(num_samples), observers)


def _samples(num_samples: int) -> ArrayRecord:
    samples = torch.randn(num_samples, *SPEC.shape)
    return transport.encode_tensors({"samples": samples, "labels": torch.arange(num_samples) % len(SPEC.classes)})


def _weights(_: int) -> ArrayRecord:
    unet = build_unet("small", SPEC, make_generator(0, "initial-weights"), block_out_channels=(64, 128, 128))
    return transport.encode_tensors(unet.state_dict())


_DFD, _FEDAVG = partial(DfD, dfd_rounds=ROUNDS, prior="size"), partial(FedAvg, num_rounds=ROUNDS)
SCENARIOS = {
    "dfd, posterior weights": Scenario(_DFD, _samples, "epsilon"),
    "dfd, energy weights and ULA": Scenario(partial(_DFD, weights="energy", sampler="ula"), _samples, "epsilon"),
    "dfd, all answers at once": Scenario(_DFD, _samples, "epsilon", at_once=True),
    "fedavg": Scenario(_FEDAVG, _weights, "arrays", at_once=True),
    "fedavg, sample-from=ema": Scenario(partial(_FEDAVG, sample_from="ema"), _weights, "arrays", at_once=True),
}
"""By name; in the DfD ones every silo is asked about every sample."""


class Silos:
    """The far side of a grid: answers each question with fresh memory of an answer's size, when it is fetched."""

    def __init__(self, scenario: Scenario, num_samples: int, num_silos: int) -> None:
        self._nodes, self._at_once = list(range(1, num_silos + 1)), scenario.at_once
        arrays = scenario.arrays(num_samples)
        # A noise prediction has the shape of the samples, an update that of the weights.
        record = ArrayRecord({name: array for name, array in arrays.items() if name != "labels"})
        packed = transport.pack(scenario.reply, record)
        self._template = {name: cast(bytes, piece[transport.PACKED]) for name, piece in packed.items()}
        self._questions: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    @property
    def answer_bytes(self) -> int:
        """Bytes of one answer's arrays."""
        return sum(map(len, self._template.values()))

    def get_node_ids(self) -> list[int]:
        """All silos."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Note who is asked what, without the arrays, which a network would have taken away."""
        numbers = []
        for message in messages:
            numbers.append(str(next(self._numbers)))
            bare = Message(RecordDict(), dst_node_id=message.metadata.dst_node_id, message_type="query")
            bare.metadata.__dict__["_message_id"] = numbers[-1]
            self._questions[numbers[-1]] = bare
        return numbers

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        """Answer all questions, or only the first."""
        return [self._answer(self._questions.pop(number)) for number in message_ids[: None if self._at_once else 1]]

    def _answer(self, question: Message) -> Message:
        answer = Answer(num_examples=1).to_message(question, Sender(0, f"node-{question.metadata.dst_node_id}"))
        for name, piece in self._template.items():
            answer.content[name] = ConfigRecord({transport.PACKED: bytes(memoryview(piece))})
        return answer
