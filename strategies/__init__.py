"""The server side: one strategy a file, and the registry of their names."""

from __future__ import annotations

from fedsynth.config import RunConfig
from fedsynth.errors import unknown_choice
from strategies.base import SynthesisStrategy
from strategies.centralised import Centralised
from strategies.dfd import DfD
from strategies.fedavg import FedAvg
from strategies.pooled import Pooled

STRATEGIES: dict[str, type[SynthesisStrategy]] = {
    "fedavg": FedAvg,
    "dfd": DfD,
    "pooled": Pooled,
    "centralised": Centralised,
}
"""Name in the configuration -> class."""


def build_strategy(config: RunConfig) -> tuple[SynthesisStrategy, RunConfig]:
    """Build the configured strategy, and the configuration with its ``"auto"`` keys filled in.

    Raises:
        UserError: unknown strategy, or hyper-parameters it refuses.
    """
    name = config.run.strategy
    if name not in STRATEGIES:
        raise unknown_choice("strategy", name, STRATEGIES)
    chosen = STRATEGIES[name]
    defaults = chosen.defaults(config)
    resolved = config.resolve(defaults)
    flat = resolved.to_run_config()
    return chosen(**{key.replace("-", "_"): flat[key] for key in defaults}), resolved
