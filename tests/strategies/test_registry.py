from __future__ import annotations

import inspect
import logging
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from fedsynth.config import RECIPES, SETTINGS, RunConfig, StrategyName
from fedsynth.config.methods import DfDSettings
from fedsynth.config.privacy import privacy_defaults
from fedsynth.errors import UserError
from strategies import STRATEGIES, build_strategy
from strategies.base import SynthesisStrategy
from strategies.cooperation.dfd import DfD
from strategies.registry import strategy_class

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def config_of(**changes: object) -> RunConfig:
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in changes.items()})


def test_names_are_those_of_the_configuration() -> None:
    assert set(STRATEGIES) == set(get_args(StrategyName))
    assert {name: chosen.Settings for name, chosen in STRATEGIES.items()} == SETTINGS
    assert len(set(STRATEGIES.values())) == len(STRATEGIES)


NEEDED: dict[str, dict[str, float]] = {"dp-sum": {"dp-epsilon": 10.0}}
"""Keys without which there is no run."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_entry_builds_from_keys_that_default_to_auto(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    strategy, config = build_strategy(config_of(strategy=name, **NEEDED.get(name, {})))
    assert type(strategy) is STRATEGIES[name]
    assert isinstance(strategy, SynthesisStrategy)
    assert STRATEGIES[name]().settings == strategy.settings
    assert strategy.num_rounds >= 1
    strategy.summary()
    parameters = inspect.signature(STRATEGIES[name]).parameters
    keys = {key.replace("_", "-"): parameter for key, parameter in parameters.items()}
    recipe = {"recipe": "default", **RECIPES["default"].model_dump(by_alias=True, exclude={"codec"})}
    recipe |= {**privacy_defaults(name), **({"learning-rate": 1e-2} if name == "dp-sum" else {})}
    assert set(STRATEGIES[name].defaults(RunConfig())) == set(config.resolved) - recipe.keys() == set(keys)
    flat = config.to_run_config()
    for key, parameter in keys.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default not in (parameter.empty, "auto")
        assert flat[key] == parameter.default == getattr(strategy.settings, parameter.name)
        assert PYPROJECT[key] == "auto"
        assert f"{key} = {parameter.default}" in caplog.text
    assert {key: flat[key] for key in recipe} == recipe
    untouched = {key: value for key, value in PYPROJECT.items() if key not in {*keys, *recipe}}
    assert {key: flat[key] for key in untouched} == {**untouched, "strategy": name, **NEEDED.get(name, {})}
    # Strategies send no evaluate messages.
    assert list(strategy.configure_evaluate(1, None, None, None)) == []
    assert strategy.aggregate_evaluate(1, []) is None


def settings_of(**changes: object) -> DfDSettings:
    strategy, _ = build_strategy(config_of(**changes))
    assert isinstance(strategy, DfD)
    assert strategy.num_rounds == strategy.settings.dfd_rounds
    return strategy.settings


def test_dfd_presets() -> None:
    assert settings_of() == DfDSettings()
    paper = settings_of(dfd_preset="paper")
    assert (paper.dfd_rounds, paper.sampler, paper.prior, paper.weights) == (1000, "ula", "size", "energy")
    assert (paper.energy_scale, paper.score_scale) == (2.0, 2.0)
    mine = settings_of(dfd_preset="paper", dfd_rounds=10, prior="class")
    assert (mine.dfd_rounds, mine.prior, mine.weights) == (10, "class", "energy")
    strategy, config = build_strategy(config_of(dfd_preset="paper", dfd_rounds=10, prior="class"))
    assert not {"dfd-rounds", "prior"} & set(config.resolved)
    again, twice = build_strategy(config)
    assert again.settings == strategy.settings
    assert twice == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": "posteriori"}, r"unknown weights 'posteriori': did you mean 'posterior'\?"),
        ({"sampler": "ula"}, "needs sampler = 'ddpm' or .*, not 'ula': only paths whose moves carry noise"),
        ({"dfd_rounds": 2.0}, "dfd-rounds = 2.0: must be a whole number >= 1"),
    ],
)
def test_wrong_hyper_parameters_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DfD(**wrong)
    with pytest.raises(TypeError, match="beta"):
        DfD(beta=0.1)


@pytest.mark.parametrize(
    ("sampler", "weights"), [("ula", "constant"), ("dpmsolver++", "constant"), ("ddpm", "posterior")]
)
def test_weights_left_to_the_program_suit_the_sampler(sampler: str, weights: str) -> None:
    _, config = build_strategy(config_of(sampler=sampler))
    assert config.to_run_config()["weights"] == settings_of(sampler=sampler).weights == weights


def test_unknown_strategy_gets_its_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown strategy 'fedavgg': did you mean 'fedavg'\? \(known: "):
        strategy_class("fedavgg")
