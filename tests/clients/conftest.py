from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from class_folders import write_images
from one_silo import Node, simulated


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 8x8 grey images in the classes 'even' (6 images) and 'odd' (4)."""
    return write_images(tmp_path / "clinic", {"even": 6, "odd": 4})


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Node]:
    """A function that returns a simulated silo with its own model, which is trained once for all tests."""
    folder = tmp_path_factory.mktemp("trained")

    def find(partition: int = 1, **changes: Any) -> Node:
        node = simulated(folder, partition, **changes)
        assert node.prepare().finished
        return node

    return find


@pytest.fixture
def full_disk() -> Callable[..., None]:
    """A save function to which the disk is full halfway."""

    def save(*arguments: Any) -> None:
        target = next(argument for argument in arguments if isinstance(argument, Path) or hasattr(argument, "write"))
        if isinstance(target, Path):
            (target / "half" if target.is_dir() else target).write_bytes(b"half")
        else:
            target.write(b"half")
        raise OSError(28, "No space left on device")

    return save
