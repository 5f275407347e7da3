"""The Flower app as ``flwr run`` takes it: a folder with the packages that travel to the silos, and nothing else.

It is written from what is installed, a clone or a wheel, so that both run the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path

import tomli_w

import fedsynth
from fedsynth.config import RunConfig
from fedsynth.disk import explained_writing
from fedsynth.files import atomic_directory
from fedsynth.flower_version import FLOWER_VERSION
from fedsynth.sides import INSIDE, SIDES, sides_folder

_NOT_SENT = ("api", "cli", INSIDE)
"""Folders of the package that neither side imports."""


def with_sides(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python finds this project's ``clients`` before anybody else's."""
    paths = [str(sides_folder()), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def staged_app(home: Path) -> Path:
    """Return a folder that ``flwr run`` and ``flwr build --app`` take; it is written below ``home`` where it lacks.

    The folder above it is named after its content: another version of fedsynth has another.

    Args:
        home: a ``FLWR_HOME``.

    Raises:
        UserError: the installation is not whole, or ``home`` cannot be written.
    """
    files = _files()
    app = home / "staged" / _digest(files)[:16] / "fedsynth"
    if not app.is_dir() or _digest(_read(app)) != _digest(files):
        with explained_writing(app), atomic_directory(app) as folder:
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return app


def program_digest() -> str:
    """Return the SHA-256 of the bundle that ``flwr run`` makes of :func:`staged_app`, by which silos pin a program.

    Raises:
        UserError: the installation is not whole.
    """
    # Only here: Flower's command line takes half a second to import.
    from flwr.cli.build import build_fab_from_files

    return hashlib.sha256(build_fab_from_files(_files())[0]).hexdigest()


def program_version() -> str:
    """Return on what the bytes of a bundle depend: this version, Flower's, and the library that compresses them."""
    flower = importlib.metadata.version("flwr")
    return f"fedsynth {fedsynth.__version__}, bundled by Flower {flower} with zlib {zlib.ZLIB_RUNTIME_VERSION}"


def _files() -> dict[str, bytes]:
    package, sides = Path(fedsynth.__file__).parent, sides_folder()
    own = {f"fedsynth/{name}": path for name, path in _sources(package) if name.partition("/")[0] not in _NOT_SENT}
    others = {f"{side}/{name}": path for side in SIDES for name, path in _sources(sides / side)}
    read = {name: path.read_bytes() for name, path in sorted({**own, **others}.items())}
    project = _project((sides / "pyproject.toml").read_text(encoding="utf-8"))
    return {"pyproject.toml": project.encode(), "LICENSE": (sides / "LICENSE").read_bytes(), **read}


def _sources(folder: Path) -> list[tuple[str, Path]]:
    return [(path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py")]


def _project(repository: str) -> str:
    """Return the ``pyproject.toml`` of the app, from that of the repository."""
    about = tomllib.loads(repository)["project"]
    kept = ("name", "version", "description", "requires-python", "dependencies")
    app = {
        "publisher": "fedsynth",
        "fab-format-version": 1,
        "flwr-version-target": FLOWER_VERSION,
        "components": {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"},
        "config": RunConfig().to_run_config(),
    }
    # Flower wants the licence as a file, which the repository's own table must not say any more.
    project = {**{key: about[key] for key in kept}, "license": {"file": "LICENSE"}}
    return tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})


def _digest(files: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _read(app: Path) -> dict[str, bytes]:
    return {path.relative_to(app).as_posix(): path.read_bytes() for path in app.rglob("*") if path.is_file()}
