"""One valid example of every message, and every kind of bad value of its fields, taken from their declarations."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedsynth import messages
from fedsynth.messages import Answer, Request, Sender, transport
from fedsynth.messages.aggregate import joined
from fedsynth.messages.envelope import CONFIG
from fedsynth.messages.fields import MAX_CLASSES, Place, Travels
from fedsynth.spec import ImageSpec

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

SPEC = ImageSpec(3, 8, ("even", "ödd"))
HASH = "0123456789abcdef" * 4
WEIGHTS = transport.encode_tensors(
    {"conv.weight": torch.randn(4, 2), "conv.bias": torch.ones(4), "steps": torch.tensor(3)}
)


class Exchanged(NamedTuple):
    """A request with an answer to it; both have a value in every field that travels."""

    request: Request[Answer]
    answer: Answer


SUM: Any = {"run_token": "run-1", "attempt": "first", "participants": ("a", "b", "c"), "keys": (HASH + HASH,) * 3}


def _masked(count: int) -> messages.MaskedAnswer:
    return messages.MaskedAnswer(
        masked=torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32),
        sealed=(bytes(44),) * 3,
        commitment=bytes(32),
        confirmations=(bytes(32),) * 2,
        num_examples=3,
    )


def _answered(request: Request[Answer], answer: Answer) -> Exchanged:
    return Exchanged(request, replace(answer, seconds=1.5))


EXAMPLES: dict[str, Exchanged] = {
    "describe": _answered(
        messages.DescribeRequest(),
        messages.DescribeAnswer(
            spec=SPEC,
            num_examples=7,
            policy='{"noise-queries-per-run": 3}',
            role="aggregator",
            sum_keys="0f" * 64,
        ),
    ),
    "prepare": _answered(
        messages.PrepareRequest(spec=SPEC, train_seconds=15.0, codec=f"autoencoder {'0f' * 32}", start="0f" * 32),
        messages.PrepareAnswer(
            num_examples=9,
            label_counts=(5, 4),
            steps=20,
            loss=0.25,
            finished=True,
            train_seconds=3.5,
            curve_steps=(10.0, 20.0),
            curve_losses=(0.5, 0.25),
            copied_share=0.125,
            sum_keys=HASH + HASH,
        ),
    ),
    "prepare, privately": _answered(
        messages.PrepareRequest(spec=SPEC, train_seconds=15.0, private=True, images="pseudo", run_token="run-1"),
        messages.PrepareAnswer(num_examples=9, label_counts=(5, 4), steps=20),
    ),
    "train": _answered(
        messages.TrainRequest(
            arrays=WEIGHTS,
            spec=SPEC,
            server_round=3,
            steps=5,
            first_step=10,
            proximal_mu=0.1,
            run_token="run-1",
            has_trained=True,
            report_parts=("encoder", "decoder"),
            keys='[["silo-0","0f"]]',
            certificates=('{"payload":""}',),
            model="classifier",
            images="pseudo",
        ),
        messages.TrainAnswer(arrays=WEIGHTS, num_examples=9, loss=0.5, statement='{"payload":""}'),
    ),
    "put shard": _answered(
        messages.PutShardRequest(arrays=WEIGHTS, spec=SPEC, run_token="run-1", server_round=3, shard=2),
        messages.PutShardAnswer(sha256=HASH, num_examples=9),
    ),
    "train shards": _answered(
        messages.TrainShardsRequest(
            spec=SPEC,
            server_round=3,
            steps=5,
            first_step=10,
            proximal_mu=0.1,
            has_trained=True,
            run_token="run-1",
            digests=(HASH, HASH),
        ),
        messages.TrainShardsAnswer(digests=(HASH, HASH), num_examples=9, loss=0.5),
    ),
    "get shard": _answered(
        messages.GetShardRequest(run_token="run-1", server_round=3, shard=2),
        messages.GetShardAnswer(run_token="run-1", server_round=3, shard=2, arrays=WEIGHTS, num_examples=9),
    ),
    "aggregate": _answered(
        messages.AggregateRequest(
            run_token="run-1",
            spec=SPEC,
            server_round=3,
            base=HASH,
            keys='[["silo-0","0f"]]',
            certificates=('{"payload":""}',),
            statements=('{"payload":""}', "{}"),
            updates=joined([WEIGHTS, WEIGHTS]),
            base_arrays=WEIGHTS,
            state=WEIGHTS,
            asked=WEIGHTS,
            send_arrays=True,
        ),
        messages.AggregateAnswer(statement='{"payload":""}', arrays=WEIGHTS, state=WEIGHTS, num_examples=9),
    ),
    "epsilon": _answered(
        messages.EpsilonRequest(
            samples=torch.randn(4, 3, 8, 8),
            labels=torch.tensor([0, 1, 1, 0]),
            timestep=421,
            server_round=2,
            holders=(3, 1),
        ),
        messages.EpsilonAnswer(epsilon=torch.randn(4, 3, 8, 8), num_examples=4),
    ),
    "epsilon, where silos aggregate": _answered(
        messages.EpsilonRequest(
            samples=torch.randn(2, 1, 8, 8),
            labels=torch.tensor([0, 1]),
            timestep=421,
            server_round=2,
            holders=(3, 1),
            run_token="run-1",
            base=HASH,
            keys='[["silo-0","0f"]]',
            certificates=('{"payload":""}',),
        ),
        messages.EpsilonAnswer(
            epsilon=torch.randn(2, 1, 8, 8), num_examples=2, counts=torch.tensor([5, 4]), statement='{"payload":""}'
        ),
    ),
    "epsilon, several timesteps": _answered(
        messages.EpsilonRequest(
            samples=torch.randn(3, 1, 8, 8),
            labels=torch.tensor([0, 1, 1]),
            timesteps=torch.tensor([7, 421, 7]),
            holders=(2, 2),
        ),
        messages.EpsilonAnswer(epsilon=torch.randn(3, 1, 8, 8), num_examples=3),
    ),
    "masked": _answered(
        messages.MaskedRequest(
            samples=torch.randn(3, 1, 8, 8),
            labels=torch.tensor([0, 1, 1]),
            timestep=421,
            part=1,
            **SUM,
            weights=torch.full((3, 2), 1 / 3),
            server_round=2,
        ),
        _masked(192),
    ),
    "masked train": _answered(
        messages.MaskedTrainRequest(
            arrays=WEIGHTS,
            spec=SPEC,
            server_round=3,
            steps=5,
            first_step=10,
            proximal_mu=0.1,
            has_trained=True,
            ranges=(1.0, 4.0),
            parts=("encoder", "decoder"),
            **SUM,
            weights=torch.full((3, 2), 1 / 3),
        ),
        _masked(12),
    ),
    "gradient": _answered(
        messages.GradientRequest(
            arrays=WEIGHTS,
            spec=SPEC,
            server_round=2,
            norm=50_000,
            **SUM,
            weights=torch.full((3, 1), 1 / 3),
        ),
        _masked(13),
    ),
    "agree": _answered(
        messages.AgreeRequest(run_token="run-1", attempt="first", survivors=("a", "b", "c")),
        messages.AgreeAnswer(signature=bytes(64), num_examples=3),
    ),
    "reveal": _answered(
        messages.RevealRequest(
            run_token="run-1",
            attempt="first",
            survivors=("a", "b", "c"),
            signers=("a", "b", "c"),
            signatures=(bytes(64),) * 3,
            sealed=(bytes(44),) * 3,
        ),
        messages.RevealAnswer(shares=(bytes(16),) * 3, seeds=(bytes(32),), num_examples=3),
    ),
    "sample": _answered(
        messages.SampleRequest(
            labels=torch.tensor([1, 0]),
            numbers=torch.tensor([3, 17]),
            spec=SPEC,
            sampler="dpmsolver++",
            holders=(3, 1),
            weights=WEIGHTS,
            server_round=4,
            run_token="run-1",
            set_size=18,
        ),
        messages.SampleAnswer(images=torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8), num_examples=2),
    ),
    "upload": _answered(messages.UploadRequest(spec=SPEC), messages.UploadAnswer(arrays=WEIGHTS, num_examples=9)),
    "confusion": _answered(
        messages.ConfusionRequest(weights=WEIGHTS, bins=5, spec=SPEC),
        messages.ConfusionAnswer(matrix=torch.randint(-3, 9, (2, 2, 5)), num_examples=9),
    ),
    "select": _answered(
        messages.SelectRequest(
            weights=WEIGHTS, thresholds=torch.tensor([0.5, 2.0], dtype=torch.float64), spec=SPEC, run_token="run-1"
        ),
        messages.SelectAnswer(predicted=(5, 4), kept=(3, 0), correct=(2, 0), num_examples=9),
    ),
    "synthesise": _answered(
        messages.SynthesiseRequest(
            weights=WEIGHTS, quota=(0, 7), sampler="sde-dpmsolver++", spec=SPEC, run_token="run-1"
        ),
        messages.SynthesiseAnswer(made=(0, 7), num_examples=7),
    ),
    "synthesise, drawn by others": _answered(
        messages.SynthesiseRequest(
            images=torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8),
            quota=(0, 2),
            sampler="sde-dpmsolver++",
            spec=SPEC,
            run_token="run-1",
        ),
        messages.SynthesiseAnswer(made=(0, 2), num_examples=2),
    ),
    "statistics": _answered(
        messages.StatisticsRequest(
            extractor="random-features",
            spec=SPEC,
        ),
        messages.StatisticsAnswer(
            num_examples=9,
            extractor="random-features",
            mean=torch.tensor([1.0, -2.0, 1e300], dtype=torch.float64),
            products=torch.eye(3, dtype=torch.float64),
            noise=0.25,
        ),
    ),
    "evaluate": _answered(
        messages.EvaluateRequest(
            weights=WEIGHTS,
            weights_hash=HASH,
            extractor="random-features",
            centres=torch.randn(6, 3),
            radii=torch.rand(6, dtype=torch.float64),
            spec=SPEC,
        ),
        messages.EvaluateAnswer(
            num_examples=9, weights_hash=HASH, right_inside=4, right_outside=2, wrong_inside=1, wrong_outside=2
        ),
    ),
}


def sent(example: Request[Answer] | Answer, packed: bool = True) -> Message:
    """A message as the other side gets it."""
    if isinstance(example, Answer):
        message = example.to_message(messages.DescribeRequest().to_message(77), Sender.of_partition(3))
    else:
        message = example.to_message(77)
    if packed:
        transport.pack_messages([message])
    else:
        unpack(message)
    return message


def unpack(message: Message) -> None:
    """Replace packed array records by plain ones."""
    for name in transport.array_names(message):
        record = transport.array_record(message, name)
        for piece in [key for key in message.content if key.startswith(f"{name}#")]:
            del message.content[piece]
        message.content[name] = record


def travelling(example: Any) -> Iterator[tuple[Field[Any], Travels]]:
    """The fields of a message that travel, with how they do."""
    for info in fields(example):
        if "travels" in info.metadata:
            yield info, info.metadata["travels"]


def is_required(info: Field[Any]) -> bool:
    """Whether a message without the field is refused."""
    return info.default is MISSING


def differences(one: Any, other: Any) -> list[str]:
    """Names of the travelling fields in which two messages differ."""
    return [info.name for info, _ in travelling(one) if not _equal(getattr(one, info.name), getattr(other, info.name))]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


class BadValue(NamedTuple):
    """One way in which a message is bad.

    Attributes:
        field: what is bad.
        name: how.
        spoil: makes it so, in a message that is not packed.
        said: what the error names.
    """

    field: str
    name: str
    spoil: Callable[[Message], None]
    said: str


BAD: dict[type, list[Any]] = {
    int: [True, "3", b"3", 1.5, float("nan"), [1], -1, 10**12 + 1, 2**53 + 1],
    float: [True, "3", b"3", float("nan"), float("inf"), -float("inf"), 10**400, [1.0], -1.0, -1e308, 1e308],
    bool: [2, "true", [True], 0.5],
    bytes: [3, True, "run", [b"run"], b"", b"short", bytes(1000)],
    str: [3, True, b"run", ["run"], "", "../silo", "two\nlines", "x" * 1001],
}
MAY_BE_NEGATIVE = {"loss", "curve_losses", "matrix"}
TOO_LONG = 100_001


def bad_values(example: Any) -> list[BadValue]:
    """Every kind of bad value of every field of a message."""
    hints = typing.get_type_hints(type(example))
    rows: list[BadValue] = []
    for info, travels in travelling(example):
        key = info.name.replace("_", "-")
        match travels.place:
            case Place.CONFIG | Place.METRICS:
                rows += _bad_scalars(info, key, travels.place.value, hints[info.name])
            case Place.TENSOR:
                value = getattr(example, info.name)
                rows += [] if value is None else _bad_tensors(info, key, travels.record, value)
            case Place.RECORD:
                rows += _bad_records(info, key, travels.record)
            case Place.SPEC:
                rows += _bad_specs(info)
    return rows


def _bad_scalars(info: Field[Any], key: str, record: str, hint: Any) -> Iterator[BadValue]:
    def put(value: Any) -> Callable[[Message], None]:
        return lambda message: message.content[record].update({key: value})

    if is_required(info):
        yield BadValue(info.name, "missing", lambda message: message.content[record].pop(key), key)
        yield BadValue(info.name, f"no {record}", lambda message: message.content.pop(record), "")
        yield BadValue(info.name, f"{record} is another kind", lambda m: _put(m, record, ArrayRecord()), "")
    kind = next(option for option in typing.get_args(hint) if option is not types.NoneType) if _is_union(hint) else hint
    values = BAD.get(kind, [])
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = [[value] for value in BAD[item] if not isinstance(value, list)]
        values += [3, "word", [3, True], [[3]], [BAD[item][-1]] * TOO_LONG, [item()] * TOO_LONG]
    made: type[ConfigRecord] | type[MetricRecord] = ConfigRecord if record == CONFIG else MetricRecord
    for value in values:
        if info.name in MAY_BE_NEGATIVE and value in (-1.0, [-1.0]):
            continue
        try:
            made({key: value})
        except TypeError:  # Flower itself carries no such value
            continue
        yield BadValue(info.name, repr(value)[:30], put(value), key)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType)


def _bad_tensors(info: Field[Any], key: str, record: str, value: torch.Tensor) -> Iterator[BadValue]:
    def put(array: Any) -> Callable[[Message], None]:
        return lambda message: message.content[record].update({key: array})

    if is_required(info):
        yield BadValue(info.name, "missing", lambda message: message.content[record].pop(key), key)
        yield BadValue(info.name, "no record", lambda message: message.content.pop(record), "missing")
    other = value.to(torch.int32) if value.is_floating_point() else value.to(torch.float32)
    broken = {
        "more dimensions": value[None],
        "fewer dimensions": value.flatten()[0],
        "another dtype": other,
        "bool": value.bool(),
    }
    if value.is_floating_point():
        for bad in (float("nan"), float("inf"), -float("inf")):
            spoilt = value.clone()
            spoilt.view(-1)[-1] = bad
            broken[f"holds {bad}"] = spoilt
        if value.dtype == torch.float32:
            broken["overflows single precision"] = value.double() + 1e39
    elif value.dtype == torch.int64:
        broken["negative"] = value - (2 * 10**12 if info.name in MAY_BE_NEGATIVE else 100)
    for name, tensor in broken.items():
        yield BadValue(info.name, name, put(transport.encode(tensor)), key)
    for name, array in bad_arrays(transport.encode(value)).items():
        yield BadValue(info.name, name, put(array), key)


def bad_arrays(good: Array) -> dict[str, Array]:
    """Arrays whose bytes are not what they claim to be."""
    dtype, shape, stype, data = good.dtype, good.shape, good.stype, good.data

    def headed(descr: str, shape: str, content: bytes = b"") -> Array:
        header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        return Array(dtype, good.shape, stype, data[:8] + len(header).to_bytes(2, "little") + header + content)

    return {
        "no bytes": Array(dtype, shape, stype, b""),
        "cut short": Array(dtype, shape, stype, data[:-1]),
        "header cut": Array(dtype, shape, stype, data[:40]),
        "bytes too many": Array(dtype, shape, stype, data + b"\0"),
        "another stype": Array(dtype, shape, "pickle", data),
        "a lie about the shape": Array(dtype, (*shape, 1), stype, data),
        "a lie about the dtype": Array("float128", shape, stype, data),
        "huge": headed("'<f8'", "(1000000, 1000000)"),
        "overflowing": headed("'<f8'", f"({10**18}, {10**18}, 0)"),
        "huge number": headed("'<f8'", f"({10**30},)"),
        "negative": headed("'<f8'", "(-1, -1)", bytes(8)),
        "objects": headed("'|O'", "(1,)", b"\x80\x04cos\nsystem\n."),
        "structured": headed("[('a', '<f8')]", "(1,)", bytes(8)),
        "text": headed("'<U2'", "(1,)", bytes(8)),
        "big endian": headed("'>f8'", "(1,)", bytes(8)),
        "complex": headed("'<c8'", "(1,)", bytes(8)),
        "code": headed("(lambda: 1)()", "(1,)", bytes(8)),
        "deep": headed("(" * 5000, "(1,)", bytes(8)),
        "zip": Array(dtype, shape, stype, b"PK\x03\x04 no zip"),
        "pickle": Array(dtype, shape, stype, b"\x80\x04cos\nsystem\n."),
        "version 2 huge": Array(dtype, shape, stype, np.lib.format.magic(2, 0) + b"\xff" * 4),
        "version 3": Array(dtype, shape, stype, np.lib.format.magic(3, 0) + data[8:]),
    }


def _bad_records(info: Field[Any], key: str, record: str) -> Iterator[BadValue]:
    def packed(change: Callable[[dict[str, bytes]], None]) -> Callable[[Message], None]:
        def spoil(message: Message) -> None:
            pieces = {f"{record}#0": b"".join(piece["packed"] for piece in transport.pack("x", WEIGHTS).values())}
            change(pieces)
            message.content.pop(record)
            message.content.update({name: ConfigRecord({"packed": piece}) for name, piece in pieces.items()})

        return spoil

    first = f"{record}#0"
    if is_required(info):
        yield BadValue(info.name, "missing", lambda message: message.content.pop(record), key)
        yield BadValue(info.name, "another kind", lambda m: _put(m, record, ConfigRecord({"x": 1})), key)
    yield BadValue(info.name, "cut short", packed(lambda pieces: pieces.update({first: pieces[first][:-1]})), key)
    yield BadValue(
        info.name, "bytes too many", packed(lambda pieces: pieces.update({first: pieces[first] + b"0"})), key
    )
    yield BadValue(info.name, "first piece lost", packed(lambda p: p.update({f"{record}#1": p.pop(first)})), key)
    yield BadValue(info.name, "a piece twice", packed(lambda p: p.update({f"{record}#1": p[first]})), key)
    yield BadValue(info.name, "no bytes", packed(lambda pieces: pieces.update({first: b""})), key)


def _bad_specs(info: Field[Any]) -> Iterator[BadValue]:
    rows: dict[str, list[tuple[Any, str]]] = {
        "image-channels": [(None, "image-channels"), *((bad, "channels") for bad in (True, "3", 2, -1, 10**12, [3]))],
        "image-size": [(None, "image-size"), *((bad, "") for bad in (True, "8", 0, -8, 8.0, 10**12))],
        "classes": [
            (None, "classes"),
            *((bad, "classes") for bad in ("even", 3, [1, 2], [b"even"], ["x" * 2000], ["0"] * (MAX_CLASSES + 1))),
            ([], "0 classes: must be 1 to 10000 distinct names"),
            (["a", "a"], "distinct"),
            (["", "a"], "class name"),
            (["a" * 256], "class name"),
            (["a\nb"], "class name 'a\\nb': must be 1 to 255 printable"),
        ],
    }
    for key, bad in rows.items():
        for value, said in bad:
            yield BadValue(info.name, f"{key} {value!r}"[:40], _set_or_drop(key, value), said)
    yield BadValue(info.name, "no config", lambda message: message.content.pop(CONFIG), "")


def _set_or_drop(key: str, value: Any) -> Callable[[Message], None]:
    def spoil(message: Message) -> None:
        config = message.content[CONFIG]
        config.pop(key) if value is None else config.update({key: value})

    return spoil


def _put(message: Message, name: str, record: ArrayRecord | ConfigRecord | MetricRecord) -> None:
    message.content[name] = record


def copy_of(message: Message, reply_to: Message | None = None) -> Message:
    """The same message with records of its own."""
    content = RecordDict({name: record.copy() for name, record in message.content.items()})
    if reply_to is not None:
        return Message(content, reply_to=reply_to)
    return Message(content, dst_node_id=77, message_type=message.metadata.message_type)
