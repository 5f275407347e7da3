"""Which part may import which: the arrows of the design, read off the sources."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedsynth", "clients", "strategies", "experiments")
GROUND = ("config", "messages")
ROOMS = (
    *("data", "diffusion", "latent", "mixture", "averaging", "replicas", "few_labels"),
    *("privacy", "evaluation", "output", "tracking", "heads"),
)
MEETING_PLACES = (
    "fedsynth.evaluation.suite",
    "fedsynth.output.report",
    "fedsynth.diffusion.codec",
    "fedsynth.diffusion.base_families",
    "fedsynth.diffusion.base_model",
    "fedsynth.privacy.dp_training",
    "fedsynth.few_labels.classifier",
)
METHODS = ("averaging", "cooperation", "own_models")
SHARED_BY_METHODS = ("strategies.own_models.local_training", "strategies.own_models.shares")
FLOWER = ("fedsynth.messages.", "fedsynth.api.", "fedsynth.cli.deployment.app")
API, BOTH_SIDES = "fedsynth.api.", ("clients", "strategies")
DOOR = "fedsynth.strategies"
"""Shows users the base classes of strategies; inside fedsynth nobody comes through it."""
TOP = ("api", "cli")


def modules() -> dict[str, Path]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere; of ``from a import b`` it is ``a.b`` where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
    return found


ARROWS = sorted((name, target) for name, path in MODULES.items() for target in imported(path))


def part(name: str, depth: int) -> str:
    """``evaluation`` of ``fedsynth.evaluation.suite`` at depth 1; empty where there is none."""
    words = name.split(".")
    return words[depth] if len(words) > depth else ""


def between_packages(name: str, target: str) -> bool:
    if target == DOOR:
        return part(name, 0) == "experiments"
    if part(target, 0) in BOTH_SIDES and (name.startswith(API) or (name == DOOR and part(target, 0) == "strategies")):
        return True
    allowed = {
        "fedsynth": ("fedsynth",),
        "clients": ("clients", "fedsynth"),
        "strategies": ("strategies", "fedsynth"),
        "experiments": PACKAGES,
    }
    return part(target, 0) not in PACKAGES or part(target, 0) in allowed[part(name, 0)]


def inside_fedsynth(name: str, target: str) -> bool:
    if part(name, 0) != "fedsynth" or part(target, 0) != "fedsynth" or part(name, 1) in TOP:
        return True
    here, there = part(name, 1), part(target, 1)
    if there in ROOMS:
        return here == there or (here in ROOMS and name in MEETING_PLACES)
    return there not in TOP and (there != "messages" or here == "messages")


def to_flower(name: str, target: str) -> bool:
    return part(name, 0) != "fedsynth" or part(target, 0) != "flwr" or name.startswith(FLOWER)


def inside_strategies(name: str, target: str) -> bool:
    if part(name, 0) != "strategies" or part(target, 0) != "strategies":
        return True
    here, there = part(name, 1), part(target, 1)
    if here in ("conversation", "run"):
        return there not in (*METHODS, "results")
    if here in METHODS:
        return there != "results" and (there not in METHODS or there == here or target in SHARED_BY_METHODS)
    return True


RULES = {
    between_packages: "clients -> fedsynth <- strategies, which api and the door alone import; nothing -> experiments",
    inside_fedsynth: f"rooms meet only in {', '.join(MEETING_PLACES)} and at the top; config and messages know no room",
    to_flower: "inside fedsynth only messages, api and what stages the app know Flower",
    inside_strategies: "conversation and run know no method, methods do not know each other, results come last",
}


def test_imports_follow_the_arrows() -> None:
    broken = [
        f"{name} imports {target}: {RULES[rule]}" for name, target in ARROWS for rule in RULES if not rule(name, target)
    ]
    assert broken == []


def test_files_do_not_import_each_other_in_a_circle() -> None:
    graph = {name: {target for target in imported(path) if target in MODULES} for name, path in MODULES.items()}
    # A package's __init__ gathers what its files hold; a file that imports from its own package stands below it.
    TopologicalSorter(graph).prepare()


def test_rooms_import_without_flower() -> None:
    reached = {name for name in MODULES if part(name, 0) == "fedsynth" and part(name, 1) in ROOMS}
    while further := {target for name, target in ARROWS if name in reached and target in MODULES} - reached:
        reached |= further
    assert "fedsynth.config" in reached
    assert [name for name, target in ARROWS if name in reached and part(target, 0) == "flwr"] == []
