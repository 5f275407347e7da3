"""Arrays in few pieces of bounded size.

In a deployment Flower moves every record, every array and every 5 MB of an array in a request of its own, on each of
three hops: a U-Net of 100 layers would take 600 requests a silo to travel one way.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

PIECE_BYTES = 4 * 2**20
_LENGTH_BYTES = 8


class Packed(NamedTuple):
    """One array, field by field as in a Flower ``Array``; this module knows nothing of what they say."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def pack(arrays: Mapping[str, Packed], most: int = PIECE_BYTES) -> list[bytes]:
    """Write arrays as pieces of ``most`` bytes, the last one shorter: length of the index, index, data.

    The index is JSON: name, dtype, shape, stype and number of bytes of every array, in order.
    """
    head = _head({name: (*array[:3], len(array.data)) for name, array in arrays.items()})
    length = len(head).to_bytes(_LENGTH_BYTES, "little")
    stream = _Stream([length, head, *(array.data for array in arrays.values())])
    return [stream.take(min(most, stream.left)) for _ in range(0, stream.left, most)]


def unpack(pieces: Iterable[bytes]) -> dict[str, Packed]:
    """Inverse of :func:`pack`.

    Raises:
        ValueError: the pieces were not written by it, or not all of them are here.
    """
    arrays = {}
    try:
        stream = _Stream(pieces)
        index = json.loads(stream.take(int.from_bytes(stream.take(_LENGTH_BYTES), "little")))
        for name, dtype, shape, stype, size in index:
            arrays[name] = Packed(dtype, tuple(shape), stype, stream.take(size))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"packed arrays: {error}") from error
    if stream.left:
        raise ValueError(f"packed arrays: {stream.left} bytes too many")
    return arrays


def packed_bytes(arrays: Mapping[str, tuple[str, tuple[int, ...], str, int]]) -> int:
    """Return the bytes of all pieces of arrays that need not be there: dtype, shape, stype and number of bytes."""
    return _LENGTH_BYTES + len(_head(arrays)) + sum(size for *_, size in arrays.values())


def _head(arrays: Mapping[str, tuple[str, tuple[int, ...], str, int]]) -> bytes:
    return json.dumps([[name, *facts] for name, facts in arrays.items()], separators=(",", ":")).encode()


class _Stream:
    """Buffers read as one, without joining them all: they may be most of what the process holds.

    Attributes:
        left: bytes not read yet.
    """

    def __init__(self, buffers: Iterable[bytes]) -> None:
        self._views = deque(memoryview(buffer) for buffer in buffers)
        self.left = sum(map(len, self._views))

    def take(self, count: int) -> bytes:
        """Read ``count`` bytes.

        Raises:
            ValueError: fewer are left.
        """
        if not 0 <= count <= self.left:
            raise ValueError(f"{count} bytes asked for where {self.left} are left")
        self.left -= count
        parts = []
        while count:
            view = self._views.popleft()
            parts.append(view[:count])
            if count < len(view):
                self._views.appendleft(view[count:])
            count -= len(parts[-1])
        return b"".join(parts)
