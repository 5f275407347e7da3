"""Arrays as bytes in NumPy's file format, without the copies that ``np.save`` and ``np.load`` make on the way."""

from __future__ import annotations

import io
import math
import re
from functools import lru_cache

import numpy as np

_LENGTH_BYTES = {np.lib.format.magic(1, 0): 2, np.lib.format.magic(2, 0): 4}
"""Versions of the format, and in how many bytes each says how long its header is."""
_MAGIC_BYTES = 8
_LONGEST_HEADER = 10_000
_HEADER = re.compile(
    rb"\{'descr': '(\|b1|\|[iu]1|<i[248]|<f[248])', 'fortran_order': (True|False),"
    rb" 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)
"""What NumPy writes of a dtype that a tensor can have; its own reader evaluates whatever stands there."""


def dumps(values: np.ndarray) -> bytes:
    """Return what ``np.save`` would write of an array in C order."""
    return b"".join([_header(values), values.reshape(-1).view(np.uint8).data])


def size(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes :func:`dumps` writes of such an array."""
    values = np.broadcast_to(np.zeros((), dtype), shape)
    return len(_header(values)) + values.size * values.itemsize


def view(data: bytes) -> np.ndarray:
    """Return the array that ``data`` holds, on the memory of ``data``: it cannot be written to.

    Raises:
        ValueError: bytes that are no array, or not all of it.
    """
    width = _LENGTH_BYTES.get(data[:_MAGIC_BYTES])
    if width is None:
        raise ValueError("no array in NumPy's format, version 1 or 2")
    start = _MAGIC_BYTES + width
    length = int.from_bytes(data[_MAGIC_BYTES:start], "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    shape, fortran, dtype = _read_header(data[start : start + length])
    size = len(data) - start - length
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes for shape {shape} of {dtype}")
    return np.frombuffer(data, dtype, offset=start + length).reshape(shape, order="F" if fortran else "C")


@lru_cache(1024)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Parse a header. The layers of all silos share a few."""
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"header {header[:80]!r}: must be NumPy's of whole or floating-point numbers")
    dtype, fortran, shape = match.groups()
    sizes = tuple(int(size) for size in shape.split(b",") if size.strip())
    return sizes, fortran == b"True", np.dtype(dtype.decode())


def _header(values: np.ndarray) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    return header.getvalue()
