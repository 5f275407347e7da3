"""The server side: one strategy a file, and the registry of their names."""

from __future__ import annotations

from fedsynth.config import RunConfig
from fedsynth.errors import UserError, unknown_choice
from fedsynth.own_code import is_own, load_own
from strategies.base import SynthesisStrategy
from strategies.bulyan import Bulyan
from strategies.centralised import Centralised
from strategies.dfd import DfD
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedddpm import FedDDPM
from strategies.fedddpm_plus import FedDDPMPlus
from strategies.feddiffuse import FedDiffuse
from strategies.fedmedian import FedMedian
from strategies.fedprox import FedProx
from strategies.fedtrimmedavg import FedTrimmedAvg
from strategies.fedyogi import FedYogi
from strategies.generator import refuse_generator
from strategies.krum import Krum
from strategies.local import Local
from strategies.multikrum import MultiKrum
from strategies.pooled import Pooled

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
    if not is_own(name):
        if name not in STRATEGIES:
            raise unknown_choice("strategy", name, STRATEGIES)
        return STRATEGIES[name]
    chosen = load_own("strategy", name)
    if not (isinstance(chosen, type) and issubclass(chosen, SynthesisStrategy)):
        raise UserError(f"strategy = '{name}': must be a class derived from strategies.base.SynthesisStrategy")
    return chosen


def build_strategy(config: RunConfig) -> tuple[SynthesisStrategy, RunConfig]:
    """Build the configured strategy, and the configuration with its ``"auto"`` keys filled in.

    Raises:
        UserError: unknown strategy, or hyper-parameters it refuses.
    """
    chosen = strategy_class(config.run.strategy)
    defaults = chosen.defaults(config)
    resolved = config.resolve(defaults)
    flat = resolved.to_run_config()
    strategy = chosen(**{key.replace("-", "_"): flat[key] for key in defaults})
    strategy.check(resolved)
    refuse_generator(resolved)
    return strategy, resolved
