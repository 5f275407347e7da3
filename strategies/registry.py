"""The registry: strategies by their name in the configuration."""

from __future__ import annotations

from collections.abc import Collection

from fedsynth.config import AUTO, KEYS, RunConfig
from fedsynth.config.recipe import recipe_name, shared_defaults
from fedsynth.errors import UserError, unknown_choice
from fedsynth.plugins import is_plugin, load_plugin
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedddpm import FedDDPM, FedDDPMPlus
from strategies.averaging.feddiffuse import FedDiffuse
from strategies.averaging.fedprox import FedProx
from strategies.averaging.krum import Bulyan, Krum, MultiKrum
from strategies.averaging.robust import FedMedian, FedTrimmedAvg
from strategies.averaging.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from strategies.base import SynthesisStrategy
from strategies.centralised import Centralised
from strategies.cooperation.dfd import DfD
from strategies.dp_sum import DPSum
from strategies.few_labels.ddsa import DDSA
from strategies.own_models.local import Local
from strategies.own_models.pooled import Pooled

STRATEGIES: dict[str, type[SynthesisStrategy]] = {
    "fedavg": FedAvg,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    "multikrum": MultiKrum,
    "bulyan": Bulyan,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedprox": FedProx,
    "feddiffuse": FedDiffuse,
    "fedddpm": FedDDPM,
    "fedddpm-plus": FedDDPMPlus,
    "dp-sum": DPSum,
    "ddsa": DDSA,
    "dfd": DfD,
    "pooled": Pooled,
    "local": Local,
    "centralised": Centralised,
}
"""Name in the configuration -> class."""


def strategy_class(name: str) -> type[SynthesisStrategy]:
    """Return the class of a strategy: one of :data:`STRATEGIES`, or ``module:Class`` of a user's own.

    Raises:
        UserError: there is none of that name, or it is no :class:`SynthesisStrategy`.
    """
    if not is_plugin(name):
        if name not in STRATEGIES:
            raise unknown_choice("strategy", name, STRATEGIES)
        return STRATEGIES[name]
    chosen = load_plugin("strategy", name)
    if not (isinstance(chosen, type) and issubclass(chosen, SynthesisStrategy)):
        raise UserError(f"strategy = '{name}': must be a class derived from fedsynth.strategies.SynthesisStrategy")
    if not isinstance(getattr(chosen, "how", None), str):
        raise UserError(f"strategy = '{name}': needs 'how', half a sentence that says what the silos did")
    for key in chosen.defaults(RunConfig()):
        if key not in KEYS:
            raise UserError(f"strategy = '{name}': its Settings hold '{key}', which is no configuration key")
    return chosen


def build_strategy(config: RunConfig) -> tuple[SynthesisStrategy, RunConfig]:
    """Build the configured strategy, and the configuration with its ``"auto"`` keys filled in.

    Raises:
        UserError: unknown strategy, or hyper-parameters it refuses.
    """
    chosen = strategy_class(config.run.strategy)
    defaults = chosen.defaults(config)
    flat = config.to_run_config()
    shared = {key: value for key, value in shared_defaults(flat).items() if value != AUTO}
    resolved = config.resolve({"recipe": recipe_name(flat), **shared, **defaults})
    _refuse_foreign_keys(resolved, defaults)
    flat = resolved.to_run_config()
    strategy = chosen(**{key.replace("-", "_"): flat[key] for key in defaults})
    strategy.check(resolved)
    return strategy, resolved


def _refuse_foreign_keys(config: RunConfig, taken: Collection[str]) -> None:
    """Refuse settings that a plug-in does not take: only its class says which it does."""
    for key, value in config.strategy_keys.model_dump(by_alias=True).items():
        if value != AUTO and key not in taken:
            raise UserError(f"{key} = {value!r}: strategy = '{config.run.strategy}' does not take it; leave it out")
