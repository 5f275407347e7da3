"""What the images of a run look like."""

from __future__ import annotations

from dataclasses import dataclass


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
