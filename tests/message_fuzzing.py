"""Valid messages with seeded damage of every kind that bytes from another machine can have."""

from __future__ import annotations

import json
import random
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from message_examples import EXAMPLES, bad_arrays, copy_of, sent, travelling

from fedsynth.messages import MessageError, sender_of
from fedsynth.messages.envelope import METRICS
from fedsynth.messages.fields import Place, shown

EXTREMES: list[Any] = [
    *(0, 1, -1, 2, 255, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1e-308, 5e-324, 1e308, float("nan"), float("inf"), -float("inf")),
    *(True, False, "", "a", "\0", "\ud800", "../..", "\n" * 50, "é" * 5000, b"", b"\xff" * 9, b"x" * 5000),
    *([], [0], [-1], [1.5], [float("nan")], [True], [""], ["a", "a"], [b""], [2**63], [10**400], [0] * 200_000),
]
INDEX_EXTREMES: list[Any] = [*EXTREMES[:-1], None, {}, {"a": 1}, [[]], [[[1]]], [None], -1.5]
PEAK_BYTES = 2**26


def survivors_of(name: str, side: str, mutations: int, seed: int = 0) -> int:
    """Read mutations of one message, and return how many of them were still usable.

    Raises:
        AssertionError: reading one raised something else than MessageError, warned, or took memory that the message
            does not have.
    """
    request, answer = EXAMPLES[name]
    good = sent(request if side == "request" else answer)
    plain = sent(request if side == "request" else answer, packed=False)
    read: Callable[[Message], Any] = type(request).from_message if side == "request" else request.reader()
    question = sent(request)
    usable = longest = 0
    rng = random.Random(f"{name} {side} {seed}")
    tracemalloc.start()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for number in range(mutations):
            start = rng.choice((good, plain))
            message = copy_of(start, None if side == "request" else question)
            done = [rng.choice(MUTATIONS)(rng, message.content) for _ in range(rng.randint(1, 3))]
            try:
                sender_of(message)
                check_numbers(read(message))
                usable += 1
            except MessageError as error:
                longest = max(longest, len(str(error)))
            except BaseException as error:
                raise AssertionError(f"{name} {side}, mutation {number} {done}: {error!r:.300}") from error
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [str(each.message) for each in warned] == []
    assert longest < 1000
    assert peak < PEAK_BYTES
    return usable


def check_numbers(message: Any) -> None:
    """Every number of a message that was read is finite and so small that sums over silos, and squares, stay finite."""
    for info, travels in travelling(message):
        value = getattr(message, info.name)
        if travels.place not in (Place.CONFIG, Place.METRICS) or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            assert not isinstance(number, int | float) or abs(number) <= 1e12, (info.name, number)


def _drop_record(rng: random.Random, content: RecordDict) -> str:
    if content:
        del content[name := rng.choice(list(content))]
        return f"without {name}"
    return ""


def _rename_record(rng: random.Random, content: RecordDict) -> str:
    if not content:
        return ""
    name = rng.choice(list(content))
    new = rng.choice(("arrays", "arrays#0", "arrays#1", "arrays#-1", "#", "#0", "config", "metrics", "silo", "epsilon"))
    record = content.pop(name)
    content.pop(new, None)
    content[new] = record
    return f"{name} as {new}"


def _retype_record(rng: random.Random, content: RecordDict) -> str:
    if not content:
        return ""
    name = rng.choice(list(content))
    del content[name]
    content[name] = rng.choice((ArrayRecord(), ConfigRecord(), MetricRecord(), ConfigRecord({"packed": "text"})))
    return f"{name} of another kind"


def _change_scalar(rng: random.Random, content: RecordDict) -> str:
    records = [name for name, record in content.items() if isinstance(record, ConfigRecord | MetricRecord) and record]
    if not records:
        return ""
    name = rng.choice(records)
    record = content[name]
    key = rng.choice(list(record))
    value = rng.choice(EXTREMES)
    match rng.randrange(4):
        case 0:
            del record[key]
            return f"{name} without {key}"
        case 1:
            value = record[rng.choice(list(record))]
    try:
        record[key] = value
    except TypeError:  # Flower itself carries no such value
        return ""
    return f"{name} with {key} = {shown(value)}"


def _damage_piece(rng: random.Random, content: RecordDict) -> str:
    pieces = [name for name, record in content.items() if isinstance(record, ConfigRecord) and "packed" in record]
    if not pieces:
        return ""
    name = rng.choice(pieces)
    piece = content[name]["packed"]
    if not isinstance(piece, bytes):
        return ""
    content[name] = ConfigRecord({"packed": _damaged(rng, piece)})
    return f"{name} damaged"


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with damage mostly at their start, where lengths and headers stand."""
    place = rng.randrange(min(len(data), rng.choice((16, 128, 10**6)))) if data else 0
    match rng.randrange(6):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]
        case 2:
            return data[:place] + data[place + rng.randint(1, 9) :]
        case 3:
            return data + rng.randbytes(rng.randint(1, 300))
        case 4:
            return data[:place] + bytes([rng.choice(b"(){}[]'\"0123456789,:-#\\LO<>|\xff\0")]) + data[place + 1 :]
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if flipped:
            flipped[min(place, len(flipped) - 1)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _change_index(rng: random.Random, content: RecordDict) -> str:
    """Change what a packed record says of its arrays, with the lengths around it set right."""
    pieces = [name for name, record in content.items() if isinstance(record, ConfigRecord) and "packed" in record]
    if not pieces:
        return ""
    name = rng.choice(pieces)
    piece = content[name]["packed"]
    if not isinstance(piece, bytes):
        return ""
    end = 8 + int.from_bytes(piece[:8], "little")
    try:
        index = json.loads(piece[8:end])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(index, list) or not index:
        return ""
    row, value = rng.randrange(len(index)), rng.choice(INDEX_EXTREMES)
    match rng.randrange(4):
        case 0:
            index[row] = value
        case 1 if isinstance(index[row], list) and index[row]:
            index[row][rng.randrange(len(index[row]))] = value
        case 2:
            index.append(index[row])
        case _:
            index = value
    try:
        head = json.dumps(index).encode()
    except (TypeError, ValueError):
        head = b"[" * rng.choice((10, 100_000))
    content[name] = ConfigRecord({"packed": len(head).to_bytes(8, "little") + head + piece[end:]})
    return f"{name} with another index"


def _damage_array(rng: random.Random, content: RecordDict) -> str:
    records = [name for name, record in content.items() if isinstance(record, ArrayRecord) and record]
    if not records:
        return ""
    name = rng.choice(records)
    record = content[name]
    key = rng.choice(list(record))
    array = record[key]
    match rng.randrange(4):
        case 0:
            record[key] = Array(array.dtype, array.shape, array.stype, _damaged(rng, array.data))
        case 1:
            record[key] = rng.choice(list(bad_arrays(array).values()))
        case 2:
            record[key] = record[rng.choice(list(record))]
        case _:
            record[rng.choice(("x", "", "\0", "samples"))] = record.pop(key)
    return f"{key} of {name} damaged"


def _add_metrics(rng: random.Random, content: RecordDict) -> str:
    content.pop(METRICS, None)
    content[METRICS] = MetricRecord({"num-examples": rng.choice((-1, 2**62, 1.5, float("nan")))})
    return "other metrics"


MUTATIONS = (
    _drop_record,
    _rename_record,
    _retype_record,
    *(_change_scalar,) * 6,
    *(_damage_piece,) * 4,
    *(_change_index,) * 4,
    *(_damage_array,) * 4,
    _add_metrics,
)
