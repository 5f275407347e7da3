"""Ways in which a file comes to hold something else than was written."""

from __future__ import annotations

import random
from collections.abc import Iterator


def flipped(content: bytes, count: int = 0, seed: int = 0) -> Iterator[bytes]:
    """Yield copies with one byte changed: at ``count`` random places and at both ends, or at all if 0."""
    places = list(range(len(content)))
    if count and count < len(places):
        places = sorted({0, len(places) - 1, *random.Random(seed).sample(places, count)})
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)


def cut(content: bytes, count: int = 0, seed: int = 0) -> Iterator[bytes]:
    """Yield the beginning alone: of ``count`` random lengths, or of all if 0."""
    lengths = list(range(len(content)))
    yield from (content[:length] for length in (random.Random(seed).sample(lengths, count) if count else lengths))


def without_directory(content: bytes) -> bytes:
    """Damage the central directory of a zip archive, which says where its parts lie."""
    place = content.rindex(b"PK\1\2")
    return content[:place] + b"PK\1\0" + content[place + 4 :]
