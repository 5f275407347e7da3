"""``query.put_shard``, ``query.train_shards``, ``query.get_shard``: a round of averaging whose weights go in shards.

Weights above ``max-message-mb`` are cut into shards of whole layers (:func:`fedsynth.message_size.shards_of`). The
server gives the silo one after the other, has it train, and fetches the shards of what came of it. Both sides keep them
on disk. Before the silo trains it is told the SHA-256 of every shard that it should have, and its answer tells those of
every shard that can be fetched: a shard of another round, silo or place, or changed on its way, is refused by both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    LOSS,
    MAX_STEPS,
    MessageError,
    array_record,
    image_spec,
    metric,
    setting,
    several,
    text,
    whole,
)
from fedsynth.messages.train import RUN_TOKEN, TrainingSteps, TrainRequest
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec

MAX_SHARDS = 10_000
SHA256 = text(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    """Which shard is meant.

    Attributes:
        run_token: names the run.
        server_round: 1 for the first.
        shard: its number, 0 for the first.
    """

    run_token: str = setting(RUN_TOKEN)
    server_round: int = setting(whole(1, MAX_STEPS))
    shard: int = setting(whole(0, MAX_SHARDS - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class PutShardAnswer(Answer):
    """The shard is on the silo's disk.

    Attributes:
        sha256: of its names, types, shapes and bytes, hexadecimal.
    """

    sha256: str = setting(SHA256)


@dataclass(frozen=True, kw_only=True, eq=False)
class PutShardRequest(_Shard, Request[PutShardAnswer]):
    """Some layers of the weights to continue from.

    Attributes:
        arrays: by state dict name.
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "query.put_shard"

    arrays: Arrays = array_record()
    spec: ImageSpec = image_spec()

    def reader(self) -> Reader[PutShardAnswer]:
        """Read the answer by itself; the server knows the digest that it should have."""
        return PutShardAnswer.from_message


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainShardsAnswer(Answer):
    """What a round has made of the weights is on the silo's disk.

    Attributes:
        digests: SHA-256 of every shard, in order.
        num_examples: training images.
        loss: mean over the round's steps.
    """

    digests: tuple[str, ...] = setting(several(SHA256, MAX_SHARDS))
    num_examples: int = metric(whole())
    loss: float | None = metric(LOSS, None)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainShardsRequest(TrainingSteps, Request[TrainShardsAnswer]):
    """Continue from the weights of the shards that were given.

    Attributes:
        run_token: names the run.
        digests: SHA-256 of every shard, in order.
    """

    kind: ClassVar[str] = "query.train_shards"

    run_token: str = setting(RUN_TOKEN)
    digests: tuple[str, ...] = setting(several(SHA256, MAX_SHARDS))

    @classmethod
    def of(cls, request: TrainRequest, run_token: str, digests: tuple[str, ...]) -> Self:
        """Return the question for shards that ``request`` is for weights."""
        return cls(**request.training_steps(), run_token=run_token, digests=digests)

    def reader(self) -> Reader[TrainShardsAnswer]:
        """Refuse an answer of another number of shards."""
        number = len(self.digests)

        def read(reply: Reply) -> TrainShardsAnswer:
            answer = TrainShardsAnswer.from_message(reply)
            if len(answer.digests) != number:
                raise MessageError(f"digests of {len(answer.digests)} shards, must be {number}")
            return answer

        return read

    def check(self) -> None:
        """Refuse no shard at all."""
        if not self.digests:
            raise MessageError("digests: must be those of one shard at least")
        super().check()


@dataclass(frozen=True, kw_only=True, eq=False)
class GetShardAnswer(_Shard, Answer):
    """Some layers of the weights after the round; the number of images behind them has been told.

    Attributes:
        arrays: by state dict name; whoever knows the model checks them.
    """

    arrays: Arrays = array_record()


@dataclass(frozen=True, kw_only=True, eq=False)
class GetShardRequest(_Shard, Request[GetShardAnswer]):
    """Which shard to answer; after that the silo has it no more."""

    kind: ClassVar[str] = "query.get_shard"

    def reader(self) -> Reader[GetShardAnswer]:
        """Refuse another shard than the one that was asked for."""
        wanted = (self.run_token, self.server_round, self.shard)

        def read(reply: Reply) -> GetShardAnswer:
            answer = GetShardAnswer.from_message(reply)
            if (answer.run_token, answer.server_round, answer.shard) != wanted:
                whose = "" if answer.run_token == wanted[0] else " of another run"
                raise MessageError(
                    f"shard {answer.shard} of round {answer.server_round}{whose}, must be shard {wanted[2]} of round"
                    f" {wanted[1]}"
                )
            return answer

        return read
