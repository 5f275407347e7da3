"""The configuration of a run: every key declared once, parsed once into frozen objects."""

from fedsynth.config.run_config import RunConfig, config_keys
from fedsynth.config.sections import SECTIONS, Diffusion, Training
from fedsynth.config.types import (
    AUTO,
    REAL_SILOS,
    DatasetName,
    PartitionName,
    PresetName,
    SamplerName,
    Scalar,
    StrategyName,
)

__all__ = [
    "AUTO",
    "REAL_SILOS",
    "SECTIONS",
    "DatasetName",
    "Diffusion",
    "PartitionName",
    "PresetName",
    "RunConfig",
    "SamplerName",
    "Scalar",
    "StrategyName",
    "Training",
    "config_keys",
]
