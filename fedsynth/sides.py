"""Where the packages of the two sides of the Flower app are: ``clients`` and ``strategies``.

In a clone they lie beside ``fedsynth``. A wheel holds them inside of it, in ``fedsynth/_app``: two names as general as
these are not taken from other projects.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from fedsynth.errors import UserError

SIDES = ("clients", "strategies")
INSIDE = "_app"
"""Folder of the package that holds them in a wheel; ``setup.py`` puts them there."""


def sides_folder() -> Path:
    """Return the folder that holds both packages, the licence and ``pyproject.toml``.

    Raises:
        UserError: they are not there.
    """
    package = Path(__file__).parent
    wanted = [*(f"{side}/app.py" for side in SIDES), "LICENSE", "pyproject.toml"]
    for folder in (package / INSIDE, package.parent):
        if all((folder / name).is_file() for name in wanted):
            return folder
    raise UserError(f"'{package}' lacks its Flower app ({' and '.join(SIDES)}): install fedsynth again")


def make_sides_importable() -> None:
    """Have this process find both packages; what it finds already comes before them.

    Raises:
        UserError: they are not there, or another project's package has one of the names.
    """
    folder = sides_folder()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for side in SIDES:
        spec = find_spec(side)
        found = Path(spec.origin).parent if spec and spec.origin else None
        if found is None or found.resolve() != (folder / side).resolve():
            raise UserError(
                f"'{found}' hides the package {side} of fedsynth, in '{folder}': start Python in another folder,"
                f" or put '{folder}' first on PYTHONPATH"
            )
