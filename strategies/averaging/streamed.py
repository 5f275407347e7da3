"""Rounds of averaging whose weights are too large for a message: shard after shard, by way of the disk.

The weights of the run lie on disk as well. In memory are, at any time, one shard of every silo and what is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flwr.app import Array, ArrayRecord

from fedsynth.averaging import Layers
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.messages import (
    Answer,
    GetShardAnswer,
    GetShardRequest,
    MessageError,
    PutShardAnswer,
    PutShardRequest,
    TrainShardsAnswer,
    transport,
)
from fedsynth.sealed_tensors import digest_of_tensors
from fedsynth.shard_files import ShardFiles
from strategies.averaging.aggregation import Shapes, check_model
from strategies.base import Task
from strategies.conversation.ask import Question, ask
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

A = TypeVar("A", bound=Answer)


class WeightStream:
    """The shards of a run: how they travel, and where they lie.

    Args:
        task: the run's.
        spool: folder for them, this run's alone.
        run_token: names the run.
        shards: names of the layers of each.
        exchange: the way to the silos.

    Attributes:
        run_token: as given.
        shards: as given.
    """

    def __init__(
        self, task: Task, spool: Path, run_token: str, shards: Sequence[Sequence[str]], exchange: Exchange
    ) -> None:
        self._task, self._spool, self._exchange = task, spool, exchange
        self.run_token, self.shards = run_token, shards
        self._digests: dict[int, tuple[str, ...]] = {}

    def on_disk(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Write weights to disk, and return a record that reads them there.

        Args:
            server_round: after which they are the run's weights; 0 before the first.
            arrays: of the layers of one or all shards.

        Raises:
            UserError: the disk is full, or cannot be written.
        """
        files = self._weights(server_round)
        stored: dict[str, Array] = {}
        for shard, names in enumerate(self.shards):
            if tensors := {name: transport.peek(arrays[name]) for name in names if name in arrays}:
                with explained_writing(files.path(shard)):
                    files.write(shard, tensors)
                stored |= {name: transport.StoredArray(files.path(shard), name, tensors[name]) for name in tensors}
        return transport.record_of(stored)

    def forget(self, server_round: int) -> None:
        """Remove the weights after a round."""
        self._weights(server_round).remove()

    @contextmanager
    def spooled(self) -> Iterator[None]:
        """Remove the silos' answers at the end of the block, whatever comes of it."""
        try:
            yield
        finally:
            for silo in self._digests:
                self._answers(silo).remove()
            self._digests = {}

    def give(
        self, server_round: int, arrays: ArrayRecord, silos: Sequence[int], needed: int, timeout: float | None
    ) -> tuple[Mapping[int, float], tuple[str, ...]]:
        """Give weights to silos; return the seconds that each worked who has all of them, and the shards' SHA-256.

        Raises:
            RunError: fewer than ``needed`` have.
        """
        dtype, seconds = self._task.config.exchange.wire_dtype, dict.fromkeys(silos, 0.0)
        digests: list[str] = []
        for shard, names in enumerate(self.shards):
            record = ArrayRecord({name: transport.encode(transport.peek(arrays[name]), dtype) for name in names})
            digest = digest_of_tensors(transport.peek_tensors(record))
            digests.append(digest)
            request = PutShardRequest(
                arrays=record,
                spec=self._task.spec,
                run_token=self.run_token,
                server_round=server_round,
                shard=shard,
            )
            questions: list[Question[PutShardAnswer]] = [(silo, request) for silo in seconds]

            def check(silo: int, answer: PutShardAnswer, shard: int = shard, digest: str = digest) -> None:
                if answer.sha256 != digest:
                    raise MessageError(f"shard {shard} of round {server_round} arrived there as another one")

            told = {silo: answer.seconds for silo, answer in self._asked(questions, needed, timeout, check)}
            seconds = self._left(seconds, told, f"the weights of round {server_round}", shard)
        return seconds, tuple(digests)

    def fetch(
        self,
        server_round: int,
        trained: Mapping[int, TrainShardsAnswer],
        expected: Shapes,
        needed: int,
        timeout: float | None,
    ) -> Mapping[int, float]:
        """Write to disk what silos have made of the weights; return the seconds that each worked whose shards are all
        there. Of one that drops out between two shards none counts.

        Raises:
            RunError: they are fewer than ``needed``.
            UserError: the disk is full, or cannot be written.
        """
        self._digests = {silo: answer.digests for silo, answer in trained.items()}
        seconds = dict.fromkeys(trained, 0.0)
        for shard, names in enumerate(self.shards):
            layers = {name: expected[name] for name in names}
            request = GetShardRequest(run_token=self.run_token, server_round=server_round, shard=shard)
            questions: list[Question[GetShardAnswer]] = [(silo, request) for silo in seconds]

            def check(silo: int, answer: GetShardAnswer, shard: int = shard, layers: Shapes = layers) -> None:
                check_model(answer.arrays, layers)
                if digest_of_tensors(transport.peek_tensors(answer.arrays)) != self._digests[silo][shard]:
                    raise MessageError(
                        f"shard {shard} of round {server_round} is not the one that this silo announced: its SHA-256 is"
                        " another"
                    )

            told: dict[int, float] = {}
            for silo, answer in self._asked(questions, needed, timeout, check):
                files = self._answers(silo)
                with explained_writing(files.path(shard)):
                    files.write(shard, transport.peek_tensors(answer.arrays))
                told[silo] = answer.seconds
                del answer
            seconds = self._left(seconds, told, f"its answer of round {server_round}", shard)
        return seconds

    def layers(self, silo: int, shard: int) -> Layers:
        """Return a silo's layers of a shard, which lie on its file.

        Raises:
            UserError: the file has changed since it was written.
        """
        files = self._answers(silo)
        try:
            tensors = files.read(shard, self._digests[silo][shard])
        except UserError as error:
            raise UserError(f"'{files.path(shard)}' was written whole, and has changed: {error}") from error
        return {name: tensors[name] for name in self.shards[shard]}

    def parts(self, silos: Sequence[int]) -> Iterator[Sequence[Layers]]:
        """Yield the shards of several silos, one after the other."""
        for shard in range(len(self.shards)):
            yield [self.layers(silo, shard) for silo in silos]

    def _asked(
        self,
        questions: Sequence[Question[A]],
        needed: int,
        timeout: float | None,
        check: Callable[[int, A], None],
    ) -> Iterator[tuple[int, A]]:
        return ask(self._exchange, questions, self._task.census, needed=needed, timeout=timeout, check=check)

    def _left(self, before: Mapping[int, float], told: Mapping[int, float], what: str, shard: int) -> dict[int, float]:
        """Return the seconds that each silo has worked so far which has told more now; name the others."""
        for silo in before.keys() - told.keys():
            self._answers(silo).remove()
            name = self._task.census.members[silo].name
            logger.warning(
                "%s drops out at shard %d of %d of %s: nothing of it counts", name, shard, len(self.shards), what
            )
        return {silo: before[silo] + told[silo] for silo in before if silo in told}

    def _weights(self, server_round: int) -> ShardFiles:
        return ShardFiles(self._spool / f"weights-{server_round:05d}")

    def _answers(self, silo: int) -> ShardFiles:
        return ShardFiles(self._spool / f"silo-{silo:05d}")
