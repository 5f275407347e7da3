"""fedsynth: several institutions make one synthetic image dataset together, without showing anyone their images."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Run": "fedsynth.api.run",
    "evaluate": "fedsynth.api.measuring",
    "from_pretrained": "fedsynth.api.run",
    "synthesise": "fedsynth.api.synthesis",
}
"""Where the public names are defined. Each is imported when first asked for: torch alone takes seconds."""

__all__ = ["Run", "__version__", "evaluate", "from_pretrained", "synthesise"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        hint = ": did you mean 'synthesise'?" if name == "synthesize" else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
