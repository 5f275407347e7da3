"""The configuration of a run: every key declared once, parsed once into frozen objects."""

from fedsynth.config.keys import Key
from fedsynth.config.methods import SETTINGS, StrategySettings
from fedsynth.config.published import command_of, filled, published_settings, without_paths
from fedsynth.config.recipe import RECIPES, Recipe
from fedsynth.config.run_config import KEYS, SECTIONS, RunConfig, idle_keys, keys_of, without_idle_keys
from fedsynth.config.training import Training
from fedsynth.config.types import (
    AUTO,
    NATURAL,
    OWN_MODELS,
    REAL_SILOS,
    STOCHASTIC,
    DatasetName,
    PartitionName,
    PresetName,
    SamplerName,
    Scalar,
    StrategyName,
)

__all__ = [
    "AUTO",
    "KEYS",
    "NATURAL",
    "OWN_MODELS",
    "REAL_SILOS",
    "RECIPES",
    "SECTIONS",
    "SETTINGS",
    "STOCHASTIC",
    "DatasetName",
    "Key",
    "PartitionName",
    "PresetName",
    "Recipe",
    "RunConfig",
    "SamplerName",
    "Scalar",
    "StrategyName",
    "StrategySettings",
    "Training",
    "command_of",
    "filled",
    "idle_keys",
    "keys_of",
    "published_settings",
    "without_idle_keys",
    "without_paths",
]
