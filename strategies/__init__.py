"""The server side: one strategy a file, and the registry of their names."""

from __future__ import annotations

from fedsynth.config import RunConfig
from fedsynth.errors import unknown_choice
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
    strategy = chosen(**{key.replace("-", "_"): flat[key] for key in defaults})
    strategy.check(resolved)
    refuse_generator(resolved)
    return strategy, resolved
