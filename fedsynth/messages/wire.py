"""What crosses between server and silo: message names, record layout, codecs, byte counting.

| message | server sends | silo answers |
|---|---|---|
| ``train`` | ``arrays``: weights, all or some parts; parts to report | ``arrays``: weights of those parts |
| ``query.describe`` | nothing | format and class names of its images, ``config`` |
| ``query.prepare`` | image spec, steps to reach | image and label counts, progress of its own training |
| ``query.epsilon`` | ``arrays``: samples, labels; noise level, or ``timesteps`` of each | ``epsilon`` |
| ``query.sample`` | ``arrays``: labels and sample numbers; perhaps ``weights`` of the model | ``arrays``: images |
| ``query.upload`` | image spec | ``arrays``: weights of its own model |
| ``query.statistics`` | ``weights`` of a classifier and their hash; ``arrays``: shift | ``arrays``: sums of features |
| ``evaluate`` | that hash; ``arrays``: features of the synthetic set | held-out images, how many right; coverage |

Array records travel packed (:func:`pack`): record ``arrays`` as ``arrays#0``, ``arrays#1``, …, which
:func:`array_record` reads.

``epsilon`` holds noise predictions (n, C, H, W). What ``config`` of a ``query.epsilon`` holds under :data:`ECHOED`, the
``metrics`` of its answer repeat. Every answer also holds a ``MetricRecord`` ``metrics`` and a ``ConfigRecord`` ``silo``
that says who answers.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)
from flwr.common.constant import SType

from fedsynth.messages import npy, packing
from fedsynth.spec import ImageSpec

TRAIN = "train"
DESCRIBE = "query.describe"
PREPARE = "query.prepare"
EPSILON = "query.epsilon"
SAMPLE = "query.sample"
UPLOAD = "query.upload"
STATISTICS = "query.statistics"
EVALUATE = "evaluate"

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
EPSILON_RECORD = "epsilon"
WEIGHTS = "weights"
SILO = "silo"

SAMPLES = "samples"
LABELS = "labels"
TIMESTEPS = "timesteps"
NUMBERS = "numbers"
IMAGES = "images"
SHIFT = "shift"
TOTAL = "total"
PRODUCTS = "products"
FEATURES = "features"

QUESTION = "question"
TIMESTEP = "timestep"
ECHOED = (QUESTION, TIMESTEP)

PACKED = "packed"

with warnings.catch_warnings():
    # torch warns once a process of a tensor on read-only memory, which is the point of peek().
    warnings.simplefilter("ignore", UserWarning)
    torch.from_numpy(np.frombuffer(b"0", np.uint8))


def encode(tensor: torch.Tensor, wire_dtype: str | None = None) -> Array:
    """Turn a tensor into a Flower array; floating-point values travel as ``wire_dtype`` (None: as they are)."""
    if wire_dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, wire_dtype))
    values = np.asarray(tensor.detach().cpu().numpy(), order="C")
    # Array(values) would do, but holds two more copies on the way.
    return Array(dtype=str(values.dtype), shape=tuple(tensor.shape), stype=SType.NUMPY, data=npy.dumps(values))


def pack(name: str, record: ArrayRecord) -> dict[str, ConfigRecord]:
    """Return the records in which an array record travels, see :mod:`fedsynth.messages.packing`."""
    arrays = {key: packing.Packed(array.dtype, array.shape, array.stype, array.data) for key, array in record.items()}
    return {f"{name}#{k}": ConfigRecord({PACKED: piece}) for k, piece in enumerate(packing.pack(arrays))}


def pack_messages(messages: Iterable[Message]) -> None:
    """Pack the array records of messages; one that they share is packed once, and shared again."""
    done: dict[tuple[str, int], dict[str, ConfigRecord]] = {}
    for message in messages:
        content = RecordDict()
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord):
                # No other record can get its id: all of them were there at the start.
                key = (name, id(record))
                if key not in done:
                    done[key] = pack(name, record)
                content.update(done[key])
            else:
                content[name] = record
        message.content = content


def array_record(message: Message, name: str) -> ArrayRecord:
    """Return an array record of a message, packed or as it is.

    Not through Flower's ``content.array_records``: that view is a reference cycle, which keeps the arrays in memory
    until the garbage collector comes by.

    Raises:
        ValueError: there is none of that name, or it cannot be read.
    """
    record = message.content.get(name)
    if isinstance(record, ArrayRecord):
        return record
    if name not in array_names(message):
        raise ValueError(f"there is no array record '{name}'")
    try:
        arrays = packing.unpack(_pieces(message, name))
        return ArrayRecord({key: Array(*array) for key, array in arrays.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be read: {error}") from error


def _pieces(message: Message, name: str) -> Iterator[bytes]:
    for number in itertools.count():
        if not isinstance(record := message.content.get(f"{name}#{number}"), ConfigRecord):
            return
        yield cast(bytes, record.get(PACKED))


def array_names(message: Message) -> set[str]:
    """Return the names of a message's array records."""
    records = message.content.items()
    return {name.partition("#")[0] for name, record in records if isinstance(record, ArrayRecord) or "#" in name}


def metrics(message: Message) -> MetricRecord:
    """Return the ``metrics`` of an answer, empty if it has none."""
    record = message.content.get(METRICS)
    return record if isinstance(record, MetricRecord) else MetricRecord()


def config(message: Message) -> ConfigRecord:
    """Return the ``config`` of a request, empty if it has none."""
    record = message.content.get(CONFIG)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def peek(array: Array) -> torch.Tensor:
    """Look at a Flower array as a tensor on the array's own bytes: it must not be written to.

    Raises:
        ValueError: the bytes are not the array they claim to be.
    """
    try:
        if array.stype != SType.NUMPY:
            raise TypeError(f"serialised as '{array.stype}', not as '{SType.NUMPY}'")
        return torch.from_numpy(npy.view(array.data))
    except Exception as error:  # whatever a stranger's bytes set off in the reader
        raise ValueError(f"array cannot be read: {error}") from error


def decode(array: Array) -> torch.Tensor:
    """Turn a Flower array into a tensor of its own memory; half precision becomes single.

    Raises:
        ValueError: as :func:`peek`.
    """
    seen = peek(array)
    return seen.float() if seen.dtype == torch.float16 else seen.clone()


def encode_tensors(tensors: Mapping[str, torch.Tensor], wire_dtype: str | None = None) -> ArrayRecord:
    """Turn named tensors, such as a state dict, into an array record."""
    return ArrayRecord({name: encode(tensor, wire_dtype) for name, tensor in tensors.items()})


def decode_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Inverse of :func:`encode_tensors`."""
    return {name: decode(array) for name, array in record.items()}


def request(
    node_id: int,
    message_type: str,
    config: Mapping[str, ConfigRecordValues],
    arrays: ArrayRecord | None = None,
    ttl: float | None = None,
) -> Message:
    """Build a message to one silo; it expires ``ttl`` seconds after now (None: Flower's default)."""
    content = RecordDict({CONFIG: ConfigRecord(dict(config))})
    if arrays is not None:
        content[ARRAYS] = arrays
    return Message(content, dst_node_id=node_id, message_type=message_type, ttl=ttl)


def answer(
    message: Message,
    silo: ConfigRecord,
    metrics: Mapping[str, MetricRecordValues],
    **arrays: ArrayRecord,
) -> Message:
    """Build the answer to ``message``; ``arrays`` are array records by name, and travel packed."""
    content = RecordDict({SILO: silo, METRICS: MetricRecord(dict(metrics))})
    for name, record in arrays.items():
        content.update(pack(name, record))
    return Message(content, reply_to=message)


def spec_to_config(spec: ImageSpec) -> dict[str, ConfigRecordValues]:
    """Write an image spec as config values."""
    return {"image-channels": spec.channels, "image-size": spec.size, "classes": list(spec.classes)}


def spec_from_config(config: ConfigRecord) -> ImageSpec:
    """Inverse of :func:`spec_to_config`."""
    classes = config["classes"]
    assert isinstance(classes, list)
    return ImageSpec(int(number(config, "image-channels")), int(number(config, "image-size")), tuple(map(str, classes)))


def number(record: ConfigRecord | MetricRecord, key: str, default: float | None = None) -> float:
    """Read one number of a record.

    Raises:
        ValueError: absent without a default, or no number.
    """
    value = record.get(key, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{key} = {value!r}: must be a number")
    return float(value)


def numbers(record: MetricRecord, key: str) -> list[float]:
    """Read a list of numbers of a record.

    Raises:
        ValueError: absent, or no list.
    """
    value = record.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} = {value!r}: must be a list of numbers")
    return [float(item) for item in value]


def silo_key(message: Message) -> tuple[int, str]:
    """Sort key and name of the silo behind an answer, the same in every run.

    Simulated silos sort by partition, real ones by name; an answer without a ``silo`` record goes by node id.
    """
    silo = message.content.get(SILO) if message.has_content() else None
    if isinstance(silo, ConfigRecord):
        partition = silo.get("partition-id")
        if isinstance(partition, int):
            return partition, f"silo-{partition}"
        if "silo-name" in silo:
            return 0, str(silo["silo-name"])
    return message.metadata.src_node_id, f"node-{message.metadata.src_node_id}"


def payload_bytes(message: Message) -> int:
    """Bytes of a message's records as serialised, without the envelope."""
    if not message.has_content():
        return 0
    return sum(_record_bytes(record) for record in message.content.values())


def _record_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + len(array.data) for name, array in record.items())
    if isinstance(piece := record.get(PACKED), bytes):
        # Serialising it would hold three copies at once.
        return len(piece)
    return len(record.deflate())
