"""Tensors and array records as bytes: codecs, packing, counting.

Array records travel packed (:func:`pack`): record ``arrays`` as ``arrays#0``, ``arrays#1``, …, which
:func:`array_record` reads.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import SType
from safetensors import SafetensorError, safe_open

from fedsynth.messages import npy, packing

Arrays = ArrayRecord
"""Named arrays as they travel."""

PACKED = "packed"

with warnings.catch_warnings():
    # torch warns once a process of a tensor on read-only memory, which is the point of peek().
    warnings.simplefilter("ignore", UserWarning)
    torch.from_numpy(np.frombuffer(b"0", np.uint8))


class StoredArray(Array):
    """An array in a safetensors file: what is looked at lies on the file, and in memory as long as somebody looks.

    Args:
        path: of the file.
        name: of the array there.
        tensor: what it holds, for type and shape.
    """

    def __init__(self, path: Path, name: str, tensor: torch.Tensor) -> None:
        self.dtype, self.shape, self.stype = str(tensor.numpy().dtype), tuple(tensor.shape), SType.NUMPY
        self._place = path, name

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Read it, as it travels."""
        return npy.dumps(np.asarray(self.tensor().numpy(), order="C"))

    def tensor(self) -> torch.Tensor:
        """Return it; it must not be written to.

        Raises:
            ValueError: the file is gone or damaged.
        """
        path, name = self._place
        try:
            with safe_open(path, "pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise ValueError(f"'{name}' cannot be read from '{path.name}': {error}") from error


def encode(tensor: torch.Tensor, wire_dtype: str | None = None) -> Array:
    """Turn a tensor into a Flower array; floating-point values travel as ``wire_dtype`` (None: as they are)."""
    tensor = as_sent(tensor, wire_dtype)
    values = np.asarray(tensor.detach().cpu().numpy(), order="C")
    # Array(values) would do, but holds two more copies on the way.
    return Array(dtype=str(values.dtype), shape=tuple(tensor.shape), stype=SType.NUMPY, data=npy.dumps(values))


def as_sent(tensor: torch.Tensor, wire_dtype: str | None) -> torch.Tensor:
    """Return a tensor in the precision in which it travels, as :func:`encode`."""
    if wire_dtype is None or not tensor.is_floating_point():
        return tensor
    dtype: torch.dtype = getattr(torch, wire_dtype)
    return tensor.to(dtype)


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


def peek(array: Array) -> torch.Tensor:
    """Look at a Flower array as a tensor on the array's own bytes: it must not be written to.

    Raises:
        ValueError: the bytes are not the array they claim to be.
    """
    if isinstance(array, StoredArray):
        return array.tensor()
    try:
        if array.stype != SType.NUMPY:
            raise TypeError(f"serialised as '{array.stype:.40}', not as '{SType.NUMPY}'")
        values = npy.view(array.data)
        if tuple(array.shape) != values.shape or array.dtype != str(values.dtype):
            raise ValueError(f"claims to be {array.dtype:.40}, but holds {values.dtype} of shape {values.shape}")
        return torch.from_numpy(values)
    except Exception as error:  # whatever a stranger's bytes set off in the reader
        raise ValueError(f"array cannot be read: {error}") from error


def decode(array: Array) -> torch.Tensor:
    """Turn a Flower array into a tensor of its own memory; half precision becomes single.

    Raises:
        ValueError: as :func:`peek`.
    """
    seen = peek(array)
    return seen.float() if seen.dtype == torch.float16 else seen.clone()


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays: Flower's constructor copies them, and reads those that lie in files."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def encode_tensors(tensors: Mapping[str, torch.Tensor], wire_dtype: str | None = None) -> ArrayRecord:
    """Turn named tensors, such as a state dict, into an array record."""
    return ArrayRecord({name: encode(tensor, wire_dtype) for name, tensor in tensors.items()})


def tensors_bytes(shapes: Mapping[str, tuple[int, ...]], wire_dtype: str) -> int:
    """Return how many bytes floating-point tensors of such shapes take in a message, before there are any."""
    facts = {name: (wire_dtype, shape, SType.NUMPY, npy.size(wire_dtype, shape)) for name, shape in shapes.items()}
    return packing.packed_bytes(facts)


def decode_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Inverse of :func:`encode_tensors`."""
    return {name: decode(array) for name, array in record.items()}


def peek_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Look at the arrays of a record as tensors on their own bytes: not to be written to.

    Raises:
        ValueError: as :func:`peek`.
    """
    return {name: peek(array) for name, array in record.items()}


def payload_bytes(message: Message) -> int:
    """Bytes of a message's records as serialised, without the envelope."""
    return sum(record_bytes(message).values())


def record_bytes(message: Message) -> dict[str, int]:
    """Bytes of each of a message's records as serialised, pieces of one array record together."""
    sizes: dict[str, int] = {}
    for name, record in message.content.items() if message.has_content() else ():
        whole = name.partition("#")[0]
        sizes[whole] = sizes.get(whole, 0) + _record_bytes(record)
    return sizes


def _record_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + len(array.data) for name, array in record.items())
    if isinstance(piece := record.get(PACKED), bytes):
        # Serialising it would hold three copies at once.
        return len(piece)
    return len(record.deflate())
