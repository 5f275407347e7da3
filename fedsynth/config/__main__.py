"""``python -m fedsynth.config`` writes what follows from the declarations of the keys; see ``make config``."""

from __future__ import annotations

from pathlib import Path

from fedsynth.config.documents import reference_page, with_block


def write(root: Path) -> None:
    """Write the block in ``pyproject.toml`` and ``docs/configuration.md`` below ``root``."""
    project = root / "pyproject.toml"
    project.write_text(with_block(project.read_text(encoding="utf-8")), encoding="utf-8")
    (root / "docs" / "configuration.md").write_text(reference_page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parents[2])
