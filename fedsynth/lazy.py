"""Names that a package offers without importing the modules behind them: many want one and would wait for all."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def imported_when_asked_for(package: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose imports stand under ``if TYPE_CHECKING:``.

    Type checkers read them there, and so does this: nothing is written twice.

    Args:
        package: its name.
    """

    @cache
    def homes() -> dict[str, str]:
        source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        return {alias.name: node.module for node in imports if node.module for alias in node.names}

    def attribute(name: str) -> Any:
        home = "" if name.startswith("__") else homes().get(name, "")
        if not home.startswith(f"{package}."):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return attribute
