from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_values import OTHER_VALUES
from fedsynth.config.sections import Model
from pydantic import ValidationError

from fedsynth import __version__
from fedsynth.config import AUTO, Diffusion, RunConfig, config_keys
from fedsynth.errors import UserError

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text())
DEFAULTS = PROJECT["tool"]["flwr"]["app"]["config"]


def parse(**keys: Any) -> RunConfig:
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in keys.items()})


def refusal(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(**keys)
    return str(caught.value)


class TestDefaults:
    def test_equal_pyproject(self) -> None:
        assert list(RunConfig().to_run_config().items()) == list(DEFAULTS.items())
        for key, value in RunConfig().to_run_config().items():
            assert type(value) is type(DEFAULTS[key]), key

    def test_every_key_says_what_it_is_for(self) -> None:
        keys = list(config_keys())
        assert [key for key, _, _ in keys] == list(DEFAULTS)
        comments = {
            line.split(" = ")[0]: line.split("# ")[1] for line in PYPROJECT.read_text().splitlines() if " # " in line
        }
        for key, _, field in keys:
            assert field.description == comments[key]

    def test_are_what_an_empty_mapping_gives(self) -> None:
        assert RunConfig.from_run_config({}) == RunConfig()
        assert RunConfig.from_run_config(DEFAULTS) == RunConfig()
        assert RunConfig().resolved == ()


class TestRoundTrip:
    def test_every_key_arrives(self) -> None:
        assert list(OTHER_VALUES) == list(DEFAULTS)
        config = RunConfig.from_run_config(OTHER_VALUES)
        assert config.to_run_config() == OTHER_VALUES
        assert all(OTHER_VALUES[key] != DEFAULTS[key] for key in DEFAULTS)
        assert RunConfig.from_run_config(config.to_run_config()) == config

    @pytest.mark.parametrize("key", list(OTHER_VALUES))
    def test_one_key_changes_nothing_else(self, key: str) -> None:
        flat = RunConfig.from_run_config({key: OTHER_VALUES[key]}).to_run_config()
        assert flat == {**DEFAULTS, key: OTHER_VALUES[key]}

    def test_whole_numbers_are_fine_where_fractions_are_allowed(self) -> None:
        value = parse(alpha=1).to_run_config()["alpha"]
        assert (value, type(value)) == (1.0, float)


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "nearest"),
        [("stratgey", "strategy"), ("num_clients", "num-clients"), ("dfd-round", "dfd-rounds"), ("Seed", "seed")],
    )
    def test_unknown_key_names_the_nearest(self, key: str, nearest: str) -> None:
        with pytest.raises(UserError, match=f"unknown config key '{key}': did you mean '{nearest}'"):
            RunConfig.from_run_config({key: 1})

    def test_unknown_key_without_a_neighbour(self) -> None:
        with pytest.raises(UserError, match=r"unknown config key 'qqqq'$"):
            RunConfig.from_run_config({"qqqq": 1})

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("strategy", "fedavgg", "unknown strategy 'fedavgg': did you mean 'fedavg'? (known: fedavg, fedmedian,"),
            ("prior", "sise", "unknown prior 'sise': did you mean 'size'? (known: auto, uniform, size, class)"),
            ("model", "digit", "unknown model 'digit': did you mean 'digits'?"),
            ("sample-from", "emaa", "unknown sample-from 'emaa': did you mean 'ema'?"),
            ("wire-dtype", "float61", "unknown wire-dtype 'float61': did you mean 'float16'?"),
            ("labels", "zzz", "unknown labels 'zzz' (known: balanced, observed)"),
        ],
    )
    def test_unknown_word_names_the_nearest(self, key: str, value: str, message: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({key: value})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        ("key", "value", "allowed"),
        [
            ("seed", "0", "a valid integer"),
            ("seed", 0.0, "a valid integer"),
            ("seed", False, "a valid integer"),
            ("num-rounds", True, "a valid integer or 'auto'"),
            ("num-rounds", 2.0, "a valid integer or 'auto'"),
            ("num-rounds", "2", "a valid integer or 'auto'"),
            ("dfd-rounds", "autoo", "a valid integer or 'auto'"),
            ("alpha", True, "a valid number"),
            ("alpha", "0.1", "a valid number"),
            ("energy-scale", False, "a valid number or 'auto'"),
            ("evaluate", 1, "a valid boolean"),
            ("evaluate", "true", "a valid boolean"),
            ("download", "no", "a valid boolean"),
            ("output-dir", 5, "a valid string"),
            ("dataset", 3, "'digits', 'mnist', 'fashion-mnist', 'cifar10', 'celeba', 'imagefolder' or 'silos'"),
            ("block-out-channels", 32, "a valid string"),
        ],
    )
    def test_wrong_type(self, key: str, value: Any, allowed: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({key: value})
        assert str(caught.value) == f"{key} = {value!r}: must be {allowed}"

    @pytest.mark.parametrize(
        ("key", "value", "allowed"),
        [
            ("seed", -1, "greater than or equal to 0"),
            ("num-clients", 0, "greater than or equal to 1"),
            ("num-rounds", 0, "greater than or equal to 1 or 'auto'"),
            ("alpha", 0.0, "greater than 0"),
            ("samples-per-client", -5, "greater than or equal to 0"),
            ("holdout-fraction", 1.0, "less than 1"),
            ("holdout-fraction", -0.1, "greater than or equal to 0"),
            ("learning-rate", 0.0, "greater than 0"),
            ("ema-decay", 1.0, "less than 1"),
            ("server-ema-decay", 1.0, "less than 1 or 'auto'"),
            ("beta-end", 1.0, "less than 1"),
            ("energy-scale", -0.5, "greater than or equal to 0 or 'auto'"),
            ("step-scale", 0.0, "greater than 0 or 'auto'"),
            ("step-scale", 0.6, "less than or equal to 0.5 or 'auto'"),
            ("reply-timeout", 0.0, "greater than 0"),
            ("run-name", "", "text of at least 1 character"),
        ],
    )
    def test_out_of_range(self, key: str, value: Any, allowed: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({key: value})
        assert str(caught.value) == f"{key} = {value!r}: must be {allowed}"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("key", [key for key, value in OTHER_VALUES.items() if isinstance(value, float)])
    def test_not_finite(self, key: str, value: float) -> None:
        with pytest.raises(UserError, match=f"{key} = {value}: must be a finite number"):
            RunConfig.from_run_config({key: value})

    @pytest.mark.parametrize("value", ["", "32,a", "6", "0,8", "8;16", "-4"])
    def test_channels_that_are_none(self, value: str) -> None:
        assert refusal(block_out_channels=value).startswith(f"block-out-channels = '{value}': must be multiples of 4")

    def test_channels(self) -> None:
        assert Model(block_out_channels="8, 16,32").channels() == (8, 16, 32)
        assert Model().channels() is None


class TestContradictions:
    @pytest.mark.parametrize(
        ("keys", "named"),
        [
            ({"weights": "posterior", "sampler": "ula"}, ["weights = 'posterior'", "sampler = 'ddpm'", "'energy'"]),
            ({"weights": "posterior", "dfd_preset": "paper"}, ["weights = 'posterior'", "sampler = 'ddpm'"]),
            ({"weights": "posterior", "sampler": "ddim"}, ["'ddpm' or 'sde-dpmsolver++'", "'ddim' set", "'constant'"]),
            ({"score_scale": 2.0}, ["score-scale = 2.0", "sampler = 'ula'"]),
            ({"score_scale": 2.0, "sampler": "ddpm", "dfd_preset": "paper"}, ["score-scale = 2.0", "sampler = 'ula'"]),
            ({"score_scale": 6.0, "step_scale": 0.5, "sampler": "ula"}, ["score-scale = 6.0", "< 4", "step-scale"]),
            ({"sampler": "ula", "strategy": "fedavg"}, ["sampler = 'ula'", "strategy = 'dfd'", "'fedavg'"]),
            ({"num_train_timesteps": 50}, ["num-train-timesteps = 50", "0.60", "at most 0.01", "beta-end"]),
            ({"beta_end": 1e-4}, ["beta-end = 0.0001", "> beta-start = 0.0001"]),
            ({"dfd_rounds": 1001}, ["dfd-rounds = 1001", "<= num-train-timesteps = 1000"]),
            ({"sampling_steps": 1001}, ["sampling-steps = 1001", "<= num-train-timesteps = 1000"]),
            ({"min_replies": 11}, ["min-replies = 11", "<= num-clients = 10"]),
            ({"num_rounds": 901}, ["num-rounds = 901", "<= train-steps = 900"]),
        ],
    )
    def test_name_keys_values_and_limit(self, keys: dict[str, Any], named: list[str]) -> None:
        message = refusal(**keys)
        assert [part for part in named if part not in message] == []

    @pytest.mark.parametrize(
        "keys",
        [
            {"weights": "posterior", "sampler": "ddpm", "dfd_preset": "paper"},
            {"weights": "energy", "sampler": "ula", "score_scale": 2.0},
            {"dfd_preset": "paper", "score_scale": 2.0},
            {"score_scale": 1.0},
            {"dfd_rounds": 1000, "sampling_steps": 1000},
            {"min_replies": 10},
            {"num_rounds": 900},
            {"score_scale": 3.9, "step_scale": 0.5, "sampler": "ula"},
        ],
    )
    def test_the_limit_itself_is_allowed(self, keys: dict[str, Any]) -> None:
        flat = parse(**keys).to_run_config()
        assert {key: flat[key.replace("_", "-")] for key in keys} == keys

    @pytest.mark.parametrize(("levels", "first", "last"), [(1000, 1e-4, 0.02), (500, 2e-4, 0.04), (1, 0.995, 0.999)])
    def test_share_of_the_signal_at_the_last_level(self, levels: int, first: float, last: float) -> None:
        diffusion = Diffusion(num_train_timesteps=levels, beta_start=first, beta_end=last)
        expected = np.prod(1 - np.linspace(first, last, levels))
        assert diffusion.last_alpha_cumprod() == pytest.approx(expected, rel=1e-9)


class TestResolve:
    def test_fills_what_is_auto_and_keeps_the_rest(self) -> None:
        config = parse(dfd_rounds=40, energy_scale=0.5)
        resolved = config.resolve({"dfd-rounds": 25, "prior": "class", "energy-scale": 2.0, "weights": "energy"})
        changed = {"prior": "class", "weights": "energy"}
        assert resolved.to_run_config() == {**config.to_run_config(), **changed}
        assert resolved.resolved == ("prior", "weights")
        assert config.cooperation.prior == AUTO

    def test_remembers_what_was_filled_in_before(self) -> None:
        resolved = parse().resolve({"prior": "class"}).resolve({"prior": "size", "image-size": 8})
        assert resolved.resolved == ("image-size", "prior")
        assert (resolved.cooperation.prior, resolved.data.image_size) == ("class", 8)

    def test_values_are_checked(self) -> None:
        with pytest.raises(UserError, match="dfd-rounds = 1000: must be <= num-train-timesteps = 600"):
            parse(num_train_timesteps=600, beta_end=0.03).resolve({"dfd-rounds": 1000})


def test_frozen() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.run.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.run = config.run  # type: ignore[misc]
    assert config == RunConfig()


def test_version_is_the_projects() -> None:
    assert __version__ == PROJECT["project"]["version"]
