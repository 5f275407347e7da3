from __future__ import annotations

import math
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsynth import __version__
from fedsynth.config import AUTO, KEYS, RECIPES, Recipe, RunConfig, Scalar, idle_keys, without_idle_keys
from fedsynth.config.training import Model
from fedsynth.config.types import A_NUMBER
from fedsynth.errors import UserError

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
DEFAULTS = RunConfig().to_run_config()


def acting(name: str) -> dict[str, Scalar]:
    """A configuration in which a key has a value that is not its default, and acts."""
    firsts = {other: wanted[0] for other, wanted in KEYS[name].acts_with.items()}
    conditions = {other: 1.0 if first == A_NUMBER else first for other, first in firsts.items()}
    strategy = conditions.get("strategy")
    for other in [*conditions]:
        if strategy and strategy not in KEYS[other].acts_with.get("strategy", (strategy,)):
            del conditions[other]  # a condition in other strategies
    if conditions.get("strategy") == "dp-sum":
        conditions["dp-epsilon"] = 1.0  # which it cannot do without
    if conditions.get("train") == "lora":
        conditions["base-model"] = "base"  # beside which adapters are
    pair = {"ledger-url": "http://127.0.0.1:8545", "ledger-contract": f"0x{'a1' * 20}"}  # neither without the other
    if name in pair:
        conditions |= {other: value for other, value in pair.items() if other != name}
    words = re.findall("'([^']+)'", KEYS[name].allowed)
    texts = ["8,16", "mlp", "flip", "elsewhere", "{class}", "fixmatch"]
    for value in [*words, True, False, 0.001, 0.04, 0.4, 2.5, 8, 20, 500, *texts]:
        with suppress(UserError):
            if value != DEFAULTS[name] and RunConfig.from_run_config({**conditions, name: value}):
                return {**conditions, name: value}
    raise AssertionError(name)


def parse(**keys: Any) -> RunConfig:
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in keys.items()})


def refusal(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(**keys)
    return str(caught.value)


class TestRoundTrip:
    def test_an_empty_mapping_gives_the_defaults(self) -> None:
        assert RunConfig.from_run_config({}) == RunConfig.from_run_config(DEFAULTS) == RunConfig()
        assert RunConfig().resolved == ()

    @pytest.mark.parametrize("name", KEYS)
    def test_every_key_arrives_and_changes_nothing_else(self, name: str) -> None:
        given = acting(name)
        config = RunConfig.from_run_config(given)
        flat = config.to_run_config()
        assert flat == {**DEFAULTS, **given}
        assert type(flat[name]) is type(given[name])
        assert RunConfig.from_run_config(flat) == config

    def test_whole_numbers_are_fine_where_fractions_are_allowed(self) -> None:
        value = parse(alpha=1).to_run_config()["alpha"]
        assert (value, type(value)) == (1.0, float)


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "hint"),
        [("stratgey", ": did you mean 'strategy'?"), ("num_clients", ": did you mean 'num-clients'?"), ("qqqq", "")],
    )
    def test_unknown_key_names_the_nearest(self, key: str, hint: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({key: 1})
        assert str(caught.value) == f"unknown config key '{key}'{hint}"

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("strategy", "fedavgg", "unknown strategy 'fedavgg': did you mean 'fedavg'? (known: fedavg, fedmedian,"),
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
            ("seed", "0", "a whole number >= 0"),
            ("seed", False, "a whole number >= 0"),
            ("num-rounds", True, "'auto' or a whole number >= 1"),
            ("dfd-rounds", "autoo", "'auto' or a whole number >= 1"),
            ("alpha", True, "a number > 0"),
            ("evaluate", 1, "true or false"),
            ("correct-once", "no", "'auto', true or false"),
            ("output-dir", 5, "text"),
            ("seed", -1, "a whole number >= 0"),
            ("alpha", 0.0, "a number > 0"),
            ("holdout-fraction", 1.0, "a number >= 0 and < 1"),
            ("step-scale", 0.6, "'auto' or a number > 0 and <= 0.5"),
            ("run-name", "", "text that is not empty"),
        ],
    )
    def test_wrong_type_or_out_of_range(self, key: str, value: Any, allowed: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.from_run_config({key: value})
        assert str(caught.value) == f"{key} = {value!r}: must be {allowed}"

    @pytest.mark.parametrize(("key", "value"), [("alpha", math.nan), ("server-ema-decay", math.inf)])
    def test_not_finite(self, key: str, value: float) -> None:
        with pytest.raises(UserError, match=f"{key} = {value}: must be finite, "):
            RunConfig.from_run_config({key: value})

    @pytest.mark.parametrize("value", ["", "32,a", "6", "0,8", "-4"])
    def test_channels(self, value: str) -> None:
        assert refusal(block_out_channels=value).startswith(f"block-out-channels = '{value}': must be multiples of 4")
        assert Model(block_out_channels="8, 16,32").channels() == (8, 16, 32)
        assert Model().channels() is None


class TestContradictions:
    @pytest.mark.parametrize(
        ("keys", "named"),
        [
            ({"weights": "posterior", "sampler": "ula"}, ["weights = 'posterior'", "'ddpm' or 'sde", "'energy'"]),
            ({"weights": "posterior", "sampler": "ddim"}, ["weights = 'posterior'", "not 'ddim'", "carry noise"]),
            ({"score_scale": 6.0, "step_scale": 0.5, "sampler": "ula"}, ["score-scale = 6.0", "< 4", "step-scale"]),
            ({"weights": "posterior", "dfd_preset": "paper"}, ["weights = 'posterior'", "not 'ula'"]),
            ({"sampler": "ula", "strategy": "fedavg"}, ["sampler = 'ula'", "strategy = 'dfd'"]),
            ({"mixed_precision": "bf16", "device": "cpu"}, ["mixed-precision = 'bf16' needs CUDA", "'auto' or 'cuda'"]),
            (
                {"schedule": "linear", "num_train_timesteps": 50},
                ["num-train-timesteps = 50", "0.60", "at most 0.01", "beta-end"],
            ),
            ({"recipe": "paper", "beta_end": 1e-4}, ["beta-end = 0.0001", "> beta-start = 0.0001"]),
            ({"dfd_rounds": 1001}, ["dfd-rounds = 1001", "<= num-train-timesteps = 1000"]),
            ({"min_replies": 11}, ["min-replies = 11", "<= num-clients = 10"]),
            ({"strategy": "fedavg", "num_rounds": 401}, ["num-rounds = 401", "<= train-steps = 400"]),
        ],
    )
    def test_name_keys_values_and_limit(self, keys: dict[str, Any], named: list[str]) -> None:
        message = refusal(**keys)
        assert [part for part in named if part not in message] == []

    @pytest.mark.parametrize(
        "keys",
        [
            {"weights": "posterior", "sampler": "ddpm", "dfd_preset": "paper"},
            {"dfd_preset": "paper", "score_scale": 2.0},
            {"dfd_rounds": 1000, "sampling_steps": 1000},
            {"min_replies": 10},
            {"strategy": "krum", "num_rounds": 400},
            {"score_scale": 3.9, "step_scale": 0.5, "sampler": "ula"},
        ],
    )
    def test_the_limit_itself_is_allowed(self, keys: dict[str, Any]) -> None:
        flat = parse(**keys).to_run_config()
        assert {key: flat[key.replace("_", "-")] for key in keys} == keys

    @pytest.mark.parametrize(("levels", "first", "last"), [(1000, 1e-4, 0.02), (500, 2e-4, 0.04), (1, 0.995, 0.999)])
    def test_share_of_the_signal_at_the_last_level(self, levels: int, first: float, last: float) -> None:
        recipe = Recipe(schedule="linear", num_train_timesteps=levels, beta_start=first, beta_end=last)
        expected = np.prod(1 - np.linspace(first, last, levels))
        assert recipe.last_alpha_cumprod() == pytest.approx(expected, rel=1e-9)


SNR_GAMMA = "snr-gamma = 2.0: acts with loss-weighting = 'min-snr' only; leave it out or set loss-weighting = 'min-snr'"
TEMPERATURE = "temperature = 4.0: acts with strategy = 'dfd' only; leave it out or set strategy = 'dfd'"


class TestKeysThatDoNotAct:
    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ({"strategy": "fedavg", "temperature": 4.0}, TEMPERATURE),
            ({"num_rounds": 5}, "num-rounds = 5: acts with strategy = 'fedavg', "),
            ({"loss_weighting": "uniform", "snr_gamma": 2.0}, SNR_GAMMA),
            ({"recipe": "paper", "snr_gamma": 2.0}, SNR_GAMMA),
            ({"dfd_preset": "paper", "snr_gamma": 2.0}, SNR_GAMMA),
            (
                {"beta_end": 0.03},
                "beta-end = 0.03: acts with schedule = 'linear' or 'scaled-linear' only; leave it out or set schedule",
            ),
            ({"recipe": "paper", "schedule": "cosine", "beta_start": 1e-3}, "beta-start = 0.001: acts with schedule"),
            ({"data_root": "x"}, "data-root = 'x': acts with dataset = 'imagefolder', "),
            ({"dataset": "medmnist:bloodmnist", "download": True}, "download = True: acts with dataset = 'mnist', "),
            ({"dataset": "hf:skin", "value_range": "full"}, "value-range = 'full': acts with dataset = 'imagefolder' "),
            ({"partition": "iid", "alpha": 1.0}, "alpha = 1.0: acts with partition = 'dirichlet' only; leave"),
            ({"parallel_levels": 4}, "parallel-levels = 4: acts with sampler = 'ddpm' or 'ddim' only"),
            ({"sampler": "ddim", "temperature": 2.0}, "temperature = 2.0: acts with weights = 'posterior' only"),
            ({"strategy": "fedavg", "server_ema_decay": 0.9}, "server-ema-decay = 0.9: acts with sample-from = 'ema'"),
        ],
    )
    def test_are_refused_with_what_they_act_with(self, keys: dict[str, Any], said: str) -> None:
        assert refusal(**keys).startswith(said)

    @pytest.mark.parametrize(
        "keys",
        [
            {"strategy": "fedavg", "temperature": AUTO},
            {"partition": "iid", "alpha": 0.1},
            {"sampler": "ddim", "temperature": 1.0},
            {"strategy": "somebody:Else", "beta": 0.3, "copy_check": False},
            {"dataset": "somebody:load", "data_root": "x"},
            {"dataset": "medmnist:bloodmnist", "data_root": "x", "partition": "iid"},
            {"dataset": "hf:fed-isic2019", "data_root": "x", "partition": "natural", "silo_column": "center"},
            {"loss_weighting": "uniform", "snr_gamma": 5.0},
            {"recipe": "paper", "beta_end": 0.03, "loss_weighting": "min-snr", "snr_gamma": 2.0},
        ],
    )
    def test_defaults_and_what_a_plug_in_may_take_are_not(self, keys: dict[str, Any]) -> None:
        parse(**keys)

    def test_a_preset_does_not_set_what_the_users_choices_keep_from_acting(self) -> None:
        settings = parse(dfd_preset="paper", sampler="ddpm", weights="constant").settings.model_dump()
        assert (settings["score_scale"], settings["energy_scale"], settings["dfd_rounds"]) == (1.0, 1.0, 1000)

    def test_can_be_left_out(self) -> None:
        kept: dict[str, Scalar] = {"strategy": "pooled", "prior": "size", "partition": "iid"}
        flat = {**kept, "num-rounds": 5, "alpha": 2.0}
        assert idle_keys(flat).keys() == {"num-rounds", "alpha"}
        assert without_idle_keys(flat) == kept


class TestResolve:
    def test_fills_what_is_auto_remembers_it_and_keeps_the_rest(self) -> None:
        config = parse(dfd_rounds=40, weights="energy", energy_scale=0.5)
        resolved = config.resolve({"dfd-rounds": 25, "prior": "class", "energy-scale": 2.0, "sampler": "ddpm"})
        changed = {"prior": "class", "sampler": "ddpm"}
        assert resolved.to_run_config() == {**config.to_run_config(), **changed}
        assert resolved.resolved == ("prior", "sampler")
        assert config.to_run_config()["prior"] == AUTO
        resolved = parse().resolve({"prior": "class"}).resolve({"prior": "size", "image-size": 8})
        assert resolved.resolved == ("image-size", "prior")
        assert (resolved.to_run_config()["prior"], resolved.data.image_size) == ("class", 8)
        with pytest.raises(UserError, match="dfd-rounds = 1000: must be <= num-train-timesteps = 600"):
            parse(num_train_timesteps=600).resolve({"dfd-rounds": 1000})


class TestRecipe:
    @pytest.mark.parametrize(
        ("keys", "name"),
        [
            ({}, "default"),
            ({"recipe": AUTO, "strategy": "fedavg"}, "default"),
            ({"recipe": "default"}, "default"),
            ({"recipe": "paper"}, "paper"),
            ({"dfd_preset": "paper"}, "paper"),
            ({"dfd_preset": "paper", "recipe": "default"}, "default"),
            ({"dfd_preset": "default", "recipe": "paper"}, "paper"),
        ],
    )
    def test_is_the_named_one_and_the_papers_preset_has_the_papers(self, keys: dict[str, Any], name: str) -> None:
        config = parse(**keys)
        assert config.recipe == RECIPES[name]
        again = RunConfig.from_run_config(config.to_run_config())
        assert (again, again.recipe) == (config, config.recipe)

    def test_the_paper_s_is_that_of_ho_et_al(self) -> None:
        """What runs had before there were recipes: Ho et al. 2020, but for the batch and a shorter average."""
        paper = RECIPES["paper"].model_dump()
        assert paper == {
            **{"prediction": "epsilon", "schedule": "linear", "loss_weighting": "uniform", "codec": "pixels"},
            **{"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "snr_gamma": 5.0},
            **{"optimizer": "adam", "learning_rate": 2e-4, "warmup_steps": 0, "learning_rate_decay": "constant"},
            "ema_decay": 0.995,
        }

    @pytest.mark.parametrize("name", RECIPES)
    def test_a_key_that_was_chosen_wins_and_the_others_stay(self, name: str) -> None:
        chosen = {"prediction": "v", "learning_rate": 0.5, "codec": "unshuffle-2", "warmup_steps": 7}
        config = parse(recipe=name, **chosen)
        assert config.recipe == RECIPES[name].model_copy(update=chosen)
        flat = config.to_run_config()
        assert {key: flat[key] for key in ("prediction", "schedule", "ema-decay")} == {
            **{"prediction": "v", "schedule": AUTO, "ema-decay": AUTO}
        }
        assert RunConfig.from_run_config(flat).recipe == config.recipe

    def test_limits_go_by_the_recipe_s_timesteps(self) -> None:
        assert parse(num_train_timesteps=50, dfd_rounds=50, sampling_steps=50).recipe.num_train_timesteps == 50
        assert refusal(num_train_timesteps=50, dfd_rounds=51, sampling_steps=50).startswith("dfd-rounds = 51: must be")
        said = refusal(recipe="paper", num_train_timesteps=50)
        assert said.startswith("num-train-timesteps = 50 leaves 0.60 of the signal's variance")

    def test_is_refused_by_name(self) -> None:
        assert (
            refusal(recipe="papers")
            == "unknown recipe 'papers': did you mean 'paper'? (known: default, paper, fine-tune, auto)"
        )
        assert refusal(prediction="eps").startswith("unknown prediction 'eps'")
        assert refusal(codec="unshuffle-3").startswith("unknown codec 'unshuffle-3': did you mean 'unshuffle-")


def test_version_is_the_projects() -> None:
    assert __version__ == PROJECT["project"]["version"]


def test_aggregators_compute_no_plug_in() -> None:
    given = {"strategy": "mine:Own", "aggregators": "silos", "num-clients": 4}
    with pytest.raises(UserError, match="strategy = 'mine:Own' with aggregators = 'silos': aggregators compute the"):
        RunConfig.from_run_config(given)
