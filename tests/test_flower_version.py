from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from fedsynth import flower_version
from fedsynth.flower_version import FLOWER_VERSION, INTERNALS, version_problem

ROOT = Path(__file__).parents[1]
DOCUMENTED = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")


def test_the_tests_run_with_the_version_that_the_project_is_written_for() -> None:
    assert version("flwr") == FLOWER_VERSION
    assert version_problem("it", "do without") == ""


def test_another_version_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_version, "version", lambda name: "1.43.1")
    assert version_problem("the warm path", "leave it out") == (
        f"the warm path uses internals of Flower {FLOWER_VERSION} and this is Flower 1.43.1:"
        f" leave it out, or install flwr=={FLOWER_VERSION}"
    )


@pytest.mark.parametrize("name", INTERNALS)
def test_internals_are_there_and_take_what_they_are_given(name: str) -> None:
    found = pkgutil.resolve_name(name)
    if wanted := INTERNALS[name].split():
        assert set(wanted) <= set(inspect.signature(found).parameters)


def undocumented_imports() -> Iterator[str]:
    """Every name that the product imports from undocumented parts of Flower."""
    for room in ("fedsynth", "clients", "strategies"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [name for name in modules if name.startswith("flwr.")], f"{path}: use 'from flwr… import'"
                if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "flwr":
                    yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module not in DOCUMENTED)


def test_all_undocumented_names_stand_in_the_list() -> None:
    used = set(undocumented_imports())
    assert "flwr.supercore.run.Run" in used
    # A module that is imported whole is listed by what is used of it.
    assert not {name for name in used if not any(f"{known}.".startswith(f"{name}.") for known in INTERNALS)}


@pytest.mark.parametrize("page", ["docs/deploy.md", "constraints.txt"])
def test_the_version_is_said_the_same_elsewhere(page: str) -> None:
    assert FLOWER_VERSION in (ROOT / page).read_text()
