from __future__ import annotations

import json
import random
from typing import Any

import pytest

from fedsynth.messages.packing import PIECE_BYTES, Packed, pack, unpack


def array(data: bytes, shape: tuple[int, ...] = (2,)) -> Packed:
    return Packed("float32", shape, "numpy.ndarray", data)


def written(index: object, data: bytes = b"") -> list[bytes]:
    """Pieces with an index that :func:`pack` would not write."""
    head = json.dumps(index).encode()
    return [len(head).to_bytes(8, "little") + head + data]


@pytest.mark.parametrize("most", [1, 7, 100, 1000, PIECE_BYTES])
def test_arrays_come_back_in_their_order_from_pieces_of_any_size(most: int) -> None:
    rng = random.Random(most)
    arrays = {f"layer {k} ä": array(rng.randbytes(rng.randrange(60)), (k, 3)) for k in range(9)}
    arrays |= {"empty": array(b"", ()), "α": array(rng.randbytes(500))}
    pieces = pack(arrays, most)
    assert {len(piece) for piece in pieces[:-1]} <= {most}
    assert 1 <= len(pieces[-1]) <= most
    back = unpack(pieces)
    assert back == arrays
    assert list(back) == list(arrays)


def test_no_array_is_a_piece_too() -> None:
    assert unpack(pack({})) == {}


def test_a_network_takes_as_many_pieces_as_its_size_asks_for() -> None:
    layers = {str(k): array(bytes(PIECE_BYTES // 10)) for k in range(25)}
    assert len(pack(layers)) == 3


def test_missing_exchanged_and_repeated_pieces_are_noticed() -> None:
    pieces = pack({"a": array(bytes(range(40))), "b": array(bytes(range(40)))}, 50)
    assert len(pieces) > 3
    for damaged in (pieces[:-1], pieces[1:], [pieces[1], pieces[0], *pieces[2:]], [*pieces, pieces[-1]], []):
        with pytest.raises(ValueError, match="packed arrays: "):
            unpack(damaged)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\x80\x04cos\nsystem\n."],
        [(5).to_bytes(8, "little") + b"[[[[["],
        [(200_000).to_bytes(8, "little") + b"[" * 200_000],
        written([["a", "float32", [1], "numpy.ndarray", 4]], b"abc"),
        written([["a", "float32", [1], "numpy.ndarray", -1]], b"abc"),
        written([["a", "float32", 3, "numpy.ndarray", 3]], b"abc"),
        written([[["a"], "float32", [3], "numpy.ndarray", 3]], b"abc"),
        written([["a", "float32", [1], "numpy.ndarray", 2]], b"abc"),
        [None],
    ],
    ids=lambda pieces: repr(pieces)[-40:],
)
def test_bytes_of_a_stranger_give_one_kind_of_error(pieces: list[Any]) -> None:
    with pytest.raises(ValueError, match="packed arrays: "):
        unpack(pieces)
