"""Arrays as bytes in NumPy's file format, without the copies that ``np.save`` and ``np.load`` make on the way."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

_MAGIC = np.lib.format.magic(1, 0)


def dumps(values: np.ndarray) -> bytes:
    """Return what ``np.save`` would write of an array in C order."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    return b"".join([header.getvalue(), values.reshape(-1).view(np.uint8).data])


def view(data: bytes) -> np.ndarray:
    """Return the array that ``data`` holds, on the memory of ``data``: it cannot be written to.

    Raises:
        ValueError: or another error of NumPy, for bytes that are no array.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        values: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        return values
    # After the magic words two bytes say how long the header is.
    first = len(_MAGIC)
    last = first + 2 + int.from_bytes(data[first : first + 2], "little")
    shape, fortran, dtype = _read_header(data[first:last])
    return np.frombuffer(data, dtype, offset=last).reshape(shape, order="F" if fortran else "C")


@lru_cache(1024)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Parse a header. It takes longer than all the rest, and the layers of all silos share a few."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
