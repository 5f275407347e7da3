"""The server side: how silos make one synthetic dataset, and the registry of the methods.

``flwr run`` imports this package only to see that its ServerApp exists: its names come when they are asked for.
"""

from typing import TYPE_CHECKING

from fedsynth.lazy import imported_when_asked_for

if TYPE_CHECKING:
    from strategies.registry import STRATEGIES, build_strategy, strategy_class

__all__ = ["STRATEGIES", "build_strategy", "strategy_class"]

__getattr__ = imported_when_asked_for(__name__)
