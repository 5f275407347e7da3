"""What pyproject.toml cannot say: a wheel holds both sides of the Flower app inside the package (fedsynth/sides.py)."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SIDES = ("clients", "strategies")


class BuildWithSides(build_py):
    """Build the package with ``clients`` and ``strategies`` inside; an editable install finds them in the clone."""

    def run(self) -> None:
        """Copy what belongs to the wheel."""
        super().run()
        if not self.editable_mode:
            for target, source in self._sides().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(str(source), target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files of the wheel."""
        return [*super().get_outputs(include_bytecode), *self._sides()]

    def _sides(self) -> dict[str, Path]:
        files = [
            ROOT / "LICENSE",
            ROOT / "pyproject.toml",
            *(path for side in SIDES for path in sorted((ROOT / side).rglob("*.py"))),
        ]
        inside = Path(self.build_lib) / "fedsynth" / "_app"
        return {str(inside / path.relative_to(ROOT)): path for path in files}


setup(cmdclass={"build_py": BuildWithSides})
