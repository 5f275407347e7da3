"""A round of averaging whose weights travel in shards: they lie on the silo's disk before and after its training.

See :mod:`fedsynth.messages.shards`. No more than one model lies there: what was received goes when it has been read
into the network, and a shard of the answer when it is answered.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from math import prod
from pathlib import Path

import torch

from clients.context import SiloContext
from clients.told_counts import told_number
from clients.training import train_round
from fedsynth.diffusion import exchanged_shapes
from fedsynth.disk import folder_bytes
from fedsynth.errors import UserError
from fedsynth.messages import (
    GetShardAnswer,
    GetShardRequest,
    PutShardAnswer,
    PutShardRequest,
    TrainRequest,
    TrainShardsAnswer,
    TrainShardsRequest,
    transport,
)
from fedsynth.sealed_tensors import digest_of_tensors
from fedsynth.shard_files import ShardFiles

MOST_BYTES_OF_A_NUMBER = 8
HEADERS_BYTES = 10**6
"""What the names of all layers take in files, generously."""
_shapes = lru_cache(maxsize=4)(exchanged_shapes)
"""A run asks for every shard: its network is built once a process."""


def put_shard(request: PutShardRequest, silo: SiloContext) -> PutShardAnswer:
    """Keep a shard of the weights of a round; those of other rounds of the run are removed.

    Raises:
        UserError: layers that the run's network lacks, more than its weights in all, or another shard of this number.
    """
    shard, tensors = request.shard, transport.peek_tensors(request.arrays)
    shapes = _shapes(silo.config, request.spec)
    for name, tensor in tensors.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise UserError(
                f"shard {shard} holds a layer '{name}' of shape {tuple(tensor.shape)}, and the run's network has"
                f" {shapes.get(name, 'none of that name')}"
            )
    received = _received(request.run_token, request.server_round, silo)
    most = MOST_BYTES_OF_A_NUMBER * sum(map(prod, shapes.values())) + HEADERS_BYTES
    with silo.explained_state():
        _remove_other_rounds(received.folder.parent)
        if received.path(shard).exists():
            received.path(shard).unlink()
        sent = sum(tensor.nbytes for tensor in tensors.values())
        if folder_bytes(received.folder) + sent > most:
            raise UserError(f"shard {shard}: with those before it more than all weights of the run's network")
        received.write(shard, tensors)
    return PutShardAnswer(sha256=digest_of_tensors(tensors))


def train_shards(request: TrainShardsRequest, silo: SiloContext) -> TrainShardsAnswer:
    """Continue from the weights received, as :func:`clients.training.train`, and keep what comes of it in shards.

    Raises:
        UserError: a shard is missing, is another one, or they are not the network; before any work.
    """
    shapes = _shapes(silo.config, request.spec)
    received = _received(request.run_token, request.server_round, silo)
    weights: dict[str, torch.Tensor] = {}
    layers: list[tuple[str, ...]] = []
    for shard, digest in enumerate(request.digests):
        try:
            tensors = received.read(shard, digest)
        except UserError as error:
            raise UserError(f"weights of round {request.server_round}: {error}: give them again") from error
        if twice := weights.keys() & tensors.keys():
            raise UserError(f"layer '{min(twice)}' is in two shards")
        weights |= tensors
        layers.append(tuple(tensors))
    if missing := shapes.keys() - weights.keys():
        raise UserError(f"layer '{min(missing)}' is in no shard of round {request.server_round}")
    told = told_number(silo, request.spec)
    question = TrainRequest(
        **request.training_steps(), arrays=transport.encode_tensors({}), run_token=request.run_token
    )
    trained, losses = train_round(question, silo, weights)
    received.remove()
    answer, dtype = _answer(request.run_token, request.server_round, silo), silo.config.exchange.wire_dtype
    digests: list[str] = []
    for shard, names in enumerate(layers):
        tensors = {name: transport.as_sent(trained[name], dtype) for name in names}
        with silo.explained_state():
            answer.write(shard, tensors)
        digests.append(digest_of_tensors(tensors))
    return TrainShardsAnswer(
        digests=tuple(digests),
        num_examples=told,
        loss=sum(losses) / len(losses) if losses and silo.policy.tell_train_loss else None,
    )


def get_shard(request: GetShardRequest, silo: SiloContext) -> GetShardAnswer:
    """Answer a shard of what a round has made of the weights, once.

    Raises:
        UserError: it is not here: the silo has not trained in this round, or it was fetched already.
    """
    files = _answer(request.run_token, request.server_round, silo)
    path = files.path(request.shard)
    if not path.is_file():
        raise UserError(
            f"shard {request.shard} of round {request.server_round} is not here: it was fetched already, or this silo"
            " has not trained in that round"
        )
    with silo.explained_state():
        arrays = transport.encode_tensors(files.tensors(request.shard))
        path.unlink()
        if not any(files.folder.iterdir()):
            _remove(files.folder.parents[1])
    return GetShardAnswer(
        run_token=request.run_token, server_round=request.server_round, shard=request.shard, arrays=arrays
    )


def _received(run_token: str, server_round: int, silo: SiloContext) -> ShardFiles:
    return ShardFiles(_round_folder(run_token, server_round, silo) / "received")


def _answer(run_token: str, server_round: int, silo: SiloContext) -> ShardFiles:
    return ShardFiles(_round_folder(run_token, server_round, silo) / "answer")


def _round_folder(run_token: str, server_round: int, silo: SiloContext) -> Path:
    # The token was read as letters, digits, '-' and '_'.
    return silo.state / "shards" / run_token / f"round-{server_round:05d}"


def _remove_other_rounds(current: Path) -> None:
    for folder in current.parent.glob("round-*"):
        if folder != current:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
