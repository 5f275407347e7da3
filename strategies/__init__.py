"""The server side: how silos make one synthetic dataset, and the registry of the methods."""

from strategies.registry import STRATEGIES, build_strategy, strategy_class

__all__ = ["STRATEGIES", "build_strategy", "strategy_class"]
