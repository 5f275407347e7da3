"""How much memory, disk and time the server needs to average weights too large for a message.

``python -m experiments.benchmarks.large_weights --megabytes 1000 --silos 4``: a random network in layers of many sizes,
and silos that answer with random weights. Rounds and checkpoints are those of a run; ``--whole`` sends the same weights
as one message, as they would be below ``max-message-mb``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from experiments.benchmarks import resident
from fedsynth.config import RunConfig, Scalar
from fedsynth.disk import folder_bytes
from fedsynth.message_size import StreamNeeds
from fedsynth.messages import (
    Answer,
    GetShardAnswer,
    GetShardRequest,
    PutShardAnswer,
    PutShardRequest,
    Sender,
    TrainAnswer,
    TrainRequest,
    TrainShardsAnswer,
    TrainShardsRequest,
    transport,
)
from fedsynth.output import RunFolder
from fedsynth.sealed_tensors import digest_of_tensors
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies import build_strategy
from strategies.averaging.base import AveragingStrategy
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.run.costs import Costs
from strategies.run.resume import checkpoint_writer
from strategies.run.rounds import run_rounds

SPEC = ImageSpec(3, 8, ("a", "b"))
Shape = tuple[int, ...]


def random_shapes(megabytes: float) -> dict[str, Shape]:
    """Return layers that hold ``megabytes`` in single precision, the largest some 15 MB, in the sizes of a U-Net's."""
    sizes: list[Shape] = [(320, 320, 3, 3), (320,), (640, 320, 3, 3), (640, 768), (640, 640), (640,), (1280, 320, 3, 3)]
    shapes: dict[str, Shape] = {}
    left = megabytes * 1e6 / 4
    for number, shape in enumerate(itertools.cycle(sizes)):
        if left <= 0:
            return shapes
        shapes[f"layers.{number:05d}.weight"] = shape
        left -= torch.Size(shape).numel()
    raise AssertionError


class FarSilos:
    """The far side of a grid: makes each answer when it is fetched, and keeps no weights."""

    def __init__(self, shapes: Mapping[str, Shape], number: int) -> None:
        self._shapes, self._nodes = shapes, list(range(1, number + 1))
        self._layers: dict[int, list[str]] = {}
        self._answers: dict[str, tuple[Message, Answer | GetShardRequest]] = {}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        """All silos."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Note what each question is answered with."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        """Answer the first question."""
        question, answer = self._answers.pop(message_ids[0])
        node = question.metadata.dst_node_id
        if isinstance(answer, GetShardRequest):
            arrays = transport.encode_tensors(self._shard(node, answer.shard))
            answer = GetShardAnswer(
                arrays=arrays, run_token=answer.run_token, server_round=answer.server_round, shard=answer.shard
            )
        if isinstance(answer, TrainAnswer):
            answer = TrainAnswer(arrays=transport.encode_tensors(self._random(node, self._shapes)), num_examples=10)
        return [answer.to_message(question, Sender(0, f"silo-{node}"))]

    def _push(self, message: Message) -> str:
        number = str(next(self._numbers))
        node = message.metadata.dst_node_id
        answer: Answer | GetShardRequest
        match message.metadata.message_type:
            case PutShardRequest.kind:
                put = PutShardRequest.from_message(message)
                self._layers[put.shard] = list(put.arrays)
                answer = PutShardAnswer(sha256=digest_of_tensors(transport.peek_tensors(put.arrays)))
            case TrainShardsRequest.kind:
                digests = tuple(digest_of_tensors(self._shard(node, shard)) for shard in sorted(self._layers))
                answer = TrainShardsAnswer(digests=digests, num_examples=10)
            case TrainRequest.kind:
                answer = TrainAnswer(arrays=transport.encode_tensors({}), num_examples=10)
            case _:
                answer = GetShardRequest.from_message(message)
        # Without its arrays, which a network would have taken away.
        bare = GetShardRequest(run_token="run", server_round=1, shard=0).to_message(node)
        bare.metadata.__dict__["_message_id"] = number
        self._answers[number] = bare, answer
        return number

    def _shard(self, node: int, shard: int) -> dict[str, torch.Tensor]:
        return self._random(node, {name: self._shapes[name] for name in self._layers[shard]})

    def _random(self, node: int, shapes: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
        return {
            name: torch.rand(shape, generator=make_generator(node, "answer", number)).sub_(0.5)
            for number, (name, shape) in enumerate(shapes.items())
        }


@contextmanager
def watched(folder: Path, found: dict[str, int]) -> Iterator[None]:
    """Note the largest memory that lies on no file, and the largest size of a folder, while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            found["anonymous"] = max(found.get("anonymous", 0), resident.anonymous())
            found["disk"] = max(found.get("disk", 0), folder_bytes(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(strategy: str, megabytes: float, silos: int, rounds: int, whole: bool, folder: Path) -> dict[str, Any]:
    """Run some rounds, and return bytes and seconds; call it in a fresh process."""
    resident.return_freed_memory()
    # Flower sets these when it starts an app; a message cannot be built without them.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    shapes = random_shapes(megabytes)
    most = 10 * megabytes if whole else 64.0
    settings: dict[str, Scalar] = {
        "strategy": strategy,
        "num-clients": silos,
        "num-rounds": rounds,
        "max-message-mb": most,
    }
    built, config = build_strategy(RunConfig.from_run_config(settings))
    assert isinstance(built, AveragingStrategy)
    place = RunFolder.create(folder, "run")
    members = [Member(node, f"silo-{node}", 10, [5, 5]) for node in range(1, silos + 1)]
    exchange = Exchange(cast(Grid, FarSilos(shapes, silos)), 3600.0)
    task = Task(config, SPEC, Census(members), torch.arange(2), spool=place.spool)
    baseline, begun = resident.reset_peak(), resident.anonymous()
    weights = transport.encode_tensors(
        {name: torch.full(shape, 0.01 * (number % 7)) for number, (name, shape) in enumerate(shapes.items())}
    )
    arrays = built.start_from(task, weights, exchange)
    del weights
    if not whole:
        resident.reset_peak()  # what the server holds before the rounds is the network itself
    found: dict[str, int] = {}
    start = time.monotonic()
    with watched(place.path, found):
        run_rounds(built, exchange, arrays, [checkpoint_writer(place, built, task, exchange, Costs(), start)])
    seconds = time.monotonic() - start
    model = 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    measured = {
        "strategy": strategy,
        "way": "whole" if whole else "shards of 64 MB",
        "silos": silos,
        "model-bytes": model,
        "peak-bytes": resident.peak() - baseline,
        "peak-anonymous-bytes": found["anonymous"] - begun,
        "disk-bytes": found["disk"],
        "seconds-per-round": seconds / rounds,
    }
    if not whole:
        needs = StreamNeeds.of(config, shapes, silos)
        measured |= {"predicted-memory-bytes": needs.server_memory, "predicted-disk-bytes": needs.server_disk}
    return measured


def main() -> None:
    """Print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--megabytes", type=float, default=1000.0)
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="as one message, as weights below max-message-mb travel")
    parser.add_argument("--folder", type=Path, help="where a run folder is made and removed; else the usual place")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measured = measure(given.strategy, given.megabytes, given.silos, given.rounds, given.whole, Path(folder))
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
