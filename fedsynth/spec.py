"""What the images of a run look like."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CLASSES = 10_000
MAX_NAME_LENGTH = 255
"""Characters of a class name."""


@dataclass(frozen=True)
class ImageSpec:
    """What server and silos must agree on before a network can be built.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        size: side of the square images in pixels.
        classes: class names; a label is an index into them.
    """

    channels: int
    size: int
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.size, self.size)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of class names that differ only in case, spaces, hyphens or underscores."""
    groups: dict[str, list[str]] = {}
    for name in names:
        bare = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        groups.setdefault(bare, []).append(name)
    return [group for group in groups.values() if len(group) > 1]
