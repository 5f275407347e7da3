"""The app that ``flwr run`` gets: the packages that travel, from a clone and from a wheel alike."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from full_disk import full_after

import fedsynth
from fedsynth import sides
from fedsynth.cli.deployment.app import program_digest, staged_app, with_sides
from fedsynth.config import KEYS
from fedsynth.errors import UserError
from fedsynth.sides import SIDES, make_sides_importable, sides_folder

ROOT = Path(__file__).parents[3]


def test_bundle_holds_the_app_only(tmp_path: Path) -> None:
    app = staged_app(tmp_path / "a home")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as bundle:
        names = bundle.namelist()
        project = tomllib.loads(bundle.read("pyproject.toml").decode())
    code = [name for name in names if name not in ("pyproject.toml", "LICENSE", ".info/CONTENT")]
    here = {path.relative_to(ROOT).as_posix() for part in ("fedsynth", *SIDES) for path in (ROOT / part).rglob("*.py")}
    assert set(code) == {name for name in here if not name.startswith(("fedsynth/cli/", "fedsynth/api/"))}
    assert len(names) == len(code) + 3
    about = project["tool"]["flwr"]["app"]
    assert about["fab-format-version"] == 1
    assert about["config"].keys() == KEYS.keys()
    assert project["project"]["version"] == fedsynth.__version__
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["project"]["dependencies"] == repository["dependencies"]


def test_bundle_of_a_clone_has_the_same_files(tmp_path: Path) -> None:
    """That of ``flwr run .``."""
    clone = tmp_path / "clone"
    for part in ("fedsynth", *SIDES, "tests/cli", "experiments/benchmarks"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, clone)
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(clone))) as of_clone:
        names = of_clone.namelist()
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(staged_app(tmp_path)))) as staged:
        assert sorted(names) == sorted(staged.namelist())


def test_app_is_written_once_for_a_version_and_mended(tmp_path: Path) -> None:
    app = staged_app(tmp_path)
    kept = app / "clients" / "app.py"
    written = kept.stat().st_mtime_ns
    assert staged_app(tmp_path) == app
    assert kept.stat().st_mtime_ns == written
    kept.write_text("raise SystemExit")
    (app / "clients" / "more.py").touch()
    assert staged_app(tmp_path) == app
    assert kept.read_bytes() == (ROOT / "clients" / "app.py").read_bytes()
    assert not (app / "clients" / "more.py").exists()


@pytest.mark.parametrize("writes", [0, 1, 200])
def test_full_disk_is_named_and_leaves_no_half_of_an_app(writes: int, tmp_path: Path) -> None:
    with full_after(writes, tmp_path), pytest.raises(UserError, match=f"{tmp_path}.*(?i:no space left)"):
        staged_app(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name.endswith(".part")] == []


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as a wheel holds it, the sides inside."""
    package = tmp_path / "site-packages" / "fedsynth"
    shutil.copytree(ROOT / "fedsynth", package, ignore=shutil.ignore_patterns("__pycache__"))
    for side in SIDES:
        shutil.copytree(ROOT / side, package / "_app" / side, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, package / "_app")
    monkeypatch.setattr(fedsynth, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(sides, "__file__", str(package / "sides.py"))
    return package


def test_wheel_stages_what_a_clone_stages(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides_folder() == wheel / "_app"
    of_wheel, pinned = staged_app(tmp_path / "home"), program_digest()
    monkeypatch.undo()
    assert staged_app(tmp_path / "home") == of_wheel, "the folder is named after its content"
    assert program_digest() == pinned == hashlib.sha256(build_fab_from_disk(of_wheel)).hexdigest()
    assert with_sides({"PYTHONPATH": "mine"}) == {"PYTHONPATH": f"{ROOT}{os.pathsep}mine"}


def test_torn_installation_is_named(wheel: Path, tmp_path: Path) -> None:
    shutil.rmtree(wheel / "_app" / "clients")
    with pytest.raises(UserError, match=rf"'{wheel}' lacks its Flower app \(clients and strategies\): install"):
        staged_app(tmp_path)


def test_package_of_another_project_is_not_taken_for_ours(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "clients").mkdir(parents=True)
    (tmp_path / "mine" / "clients" / "__init__.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] in SIDES]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), *sys.path])
    with pytest.raises(UserError, match=r"mine/clients' hides the package clients of fedsynth, in '.*/_app'"):
        make_sides_importable()
    monkeypatch.setattr(sys, "path", [str(wheel / "_app"), *sys.path])
    make_sides_importable()


def test_wheel_takes_no_other_name(tmp_path: Path) -> None:
    for part in ("fedsynth", *SIDES, "tests/cli", "experiments/benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'), build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (built,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
    assert {name.partition("/")[0] for name in names} == {"fedsynth", f"fedsynth-{fedsynth.__version__}.dist-info"}
    code_of = {path.relative_to(ROOT).as_posix() for side in SIDES for path in (ROOT / side).rglob("*.py")}
    inside = {name.removeprefix("fedsynth/_app/") for name in names if name.startswith("fedsynth/_app/")}
    assert inside == {*code_of, "LICENSE", "pyproject.toml"}
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        sent = {name.partition("/")[2] for name in archive.getnames()}
    assert {*code_of, "setup.py", "LICENSE", "pyproject.toml"} <= sent, "a wheel can be built from it"
