"""The named settings."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import cooperation, early_stopping, fedddpm, generator, regimes
from experiments.benchmarks.common import origin
from experiments.repeated_runs import mean_and_range, results_of, table_row
from fedsynth.cli.options import scalar
from fedsynth.cli.sweeps import run_process
from fedsynth.cli.sweeps.sweep_file import read_sweep
from fedsynth.config import RunConfig, Scalar
from fedsynth.config.recipe import recipe_name
from fedsynth.data import label_counts, load_federation
from fedsynth.diffusion.initial import count_parameters
from fedsynth.output import RunFolder
from fedsynth.spec import ImageSpec
from strategies import build_strategy

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.toml"))
SWEEPS = [path for path in FILES if tomllib.loads(path.read_text()).keys() & {"seeds", "grid", "zip", "method", "run"}]
SETTINGS = [path for path in FILES if path not in SWEEPS]


def config_of(path: Path, **changes: Scalar) -> RunConfig:
    given = tomllib.loads(path.read_text()) | {key.replace("_", "-"): value for key, value in changes.items()}
    return build_strategy(RunConfig.from_run_config(given))[1]


@pytest.mark.parametrize(
    "path", [path for path in SETTINGS if path.stem.endswith("-small")], ids=lambda path: path.stem
)
def test_small_settings_are_small(path: Path) -> None:
    config = config_of(path)
    assert config.data.samples_per_client <= 300
    assert max(config.training.train_steps, config.training.own_steps) <= 300
    # A step of the default recipe's network takes a thirtieth of one of the papers'.
    assert recipe_name(config.to_run_config()) == "default"
    assert count_parameters(config, ImageSpec(3, 32, tuple("0123456789"))) < 2e6
    assert config.sampling.num_samples <= 200
    assert max(config.sampling.sampling_steps, config.settings.model_dump().get("num_rounds", 0)) <= 10
    large = path.with_name(path.name.replace("-small", ""))
    if large.exists():
        ours, theirs = config_of(path), config_of(large)
        assert (ours.run.strategy, ours.data.dataset, ours.data.partition) == (
            theirs.run.strategy,
            theirs.data.dataset,
            theirs.data.partition,
        )


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_expand_to_runs_that_their_strategies_accept(path: Path) -> None:
    runs = read_sweep(path, {"autoencoder": "folder"} if path.stem.endswith("-latents") else {}).runs
    assert len({run.row for run in runs}) >= 3
    for run in runs:
        build_strategy(run.config)


def test_the_digits_sweep_is_thirteen_methods_and_two_ways_to_weigh_with_one_sampler() -> None:
    runs = read_sweep(FILES[0].with_name("digits-methods.toml")).runs
    by_row: dict[str, list[int]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run.seed)
    assert len(by_row) == 15
    assert by_row.pop("DfD (paper)") == [0]
    assert set(map(tuple, by_row.values())) == {(0, 1, 2)}
    samplers = {run.row: build_strategy(run.config)[1].settings.sampler for run in runs}
    assert samplers.pop("DfD (paper)") == "ula"
    assert set(samplers.values()) == {"sde-dpmsolver++"}


def test_disjoint_silos_are_eight_of_which_four_train() -> None:
    for run in read_sweep(FILES[0].with_name("disjoint-8-small.toml")).runs:
        strategy, config = build_strategy(run.config)
        assert strategy.num_participants(config.run.num_clients) == 4
    federation = load_federation(config)
    owners = (label_counts(federation.train.labels, federation.parts, 10) > 0).sum(axis=0)
    assert sorted(owners.tolist()) == [1] * 9 + [2]


def test_weeds_are_fine_tuned_by_six_rules_alike_and_in_small_the_same_way() -> None:
    large, small = (read_sweep(FILES[0].with_name(f"{name}.toml")).runs for name in ("weeds", "weeds-small"))
    rows = [(run.row, run.config.run.strategy, run.config.model.train) for run in large if run.seed == 0]
    assert rows == [(run.row, run.config.run.strategy, run.config.model.train) for run in small]
    assert [strategy for _, strategy, train in rows if train == "lora"] == [
        *("fedavg", "fedmedian", "fedavgm", "fedyogi", "krum", "multikrum")
    ]
    for run in (*large, *small):
        strategy, config = build_strategy(run.config)
        assert strategy.num_participants(config.run.num_clients) == 4
        averaged = {"lora-aggregation": "freeze-a"} if config.model.train == "lora" else {}
        assert {key: config.to_run_config()[key] for key in averaged} == averaged
        assert (config.run.num_clients, config.data.partition, config.sampling.labels) == (8, "disjoint", "balanced")
    assert large[0].config.sampling.num_samples == 15 * 200


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_setting_is_a_valid_run_config_that_changes_something(path: Path) -> None:
    given = tomllib.loads(path.read_text())
    _, config = build_strategy(RunConfig.from_run_config(given))
    flat = config.to_run_config()
    assert {key: flat[key] for key in given} == given
    assert flat != RunConfig().to_run_config()


METHODS = {
    **cooperation.METHODS,
    **cooperation.MORE,
    **cooperation.PAPER,
    "quick": cooperation.QUICK,
    **{f"fedddpm {name}": {**fedddpm.MNIST, **settings} for name, settings in fedddpm.METHODS.items()},
    "one silo": early_stopping.ALONE,
    **{f"generator {name}": settings for name, settings in generator.METHODS.items()},
    **{name: {**regimes.BASE, **given} for name, given in regimes.MODES.items()},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_an_experiment_are_valid_run_configs(name: str) -> None:
    given = {key: scalar(text) if isinstance(text, str) else text for key, text in METHODS[name].items()}
    given["classifiers"] = str(given.get("classifiers", "cnn"))
    _, config = build_strategy(RunConfig.from_run_config(given))
    flat = config.to_run_config()
    assert {key: flat[key] for key in given} == given


def test_results_of_an_experiment_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Path(__file__).with_name("fake_run.py")
    monkeypatch.setattr(run_process, "COMMAND", (sys.executable, str(fake)))
    settings = {"strategy": "pooled", "batch-size": "8", "seed": "3", "alpha": "1"}
    for _ in range(2):
        results = results_of(tmp_path / "all" / "pooled-3", settings)
        assert results["frechet-distance"] == 4.5 + 0.3
    assert (tmp_path / "starts").read_text() == "fresh pooled-3\n"
    config = RunFolder(tmp_path / "all" / "pooled-3").read_config()
    assert (config.training.batch_size, config.data.alpha, config.run.seed) == (8, 1.0, 3)
    (tmp_path / "all" / "pooled-3" / "results.json").unlink()
    results_of(tmp_path / "all" / "pooled-3", settings)
    assert (tmp_path / "starts").read_text() == "fresh pooled-3\n--resume pooled-3\n"


def test_a_row_is_the_mean_with_the_range_over_seeds() -> None:
    results = [{"rounds": 25, "coverage": 0.5, "frechet-distance": 10.04, "notes": ""}, {"rounds": 25, "coverage": 0.7}]
    results[1]["frechet-distance"] = 20.0
    columns = {"rounds": "rounds", "coverage": "C", "frechet-distance": "FD"}
    row = table_row("dfd", results, columns)
    assert row == {"method": "dfd", "rounds": "25", "C": "0.600 (0.500 … 0.700)", "FD": "15.0 (10.0 … 20.0)"}
    assert mean_and_range([3.0]) == "3"


def test_a_generators_row_stands_below_its_training_sets() -> None:
    results = {key: 0.25 for key in generator.COLUMNS} | {f"generator-{key}": 0.5 for key in generator.COLUMNS}
    further = {"generator-steps": 9, "generator-frechet-ratio": 1.5, "generator-repeated-share": 0.125}
    released, drawn = generator.rows_of("dfd", [{**results, **further}])
    assert (released["method"], drawn["method"]) == ("dfd", "dfd, generator")
    assert [row["coverage ↑"] for row in (released, drawn)] == ["0.250 (0.250 … 0.250)", "0.500 (0.500 … 0.500)"]
    assert [row["ratio of distances"] for row in (released, drawn)] == ["-", "1.500 (1.500 … 1.500)"]
    (alone,) = generator.rows_of("fedavg", [results])
    assert alone.keys() == released.keys()


def test_a_table_says_how_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Path(__file__).parents[1] / "experiments" / "benchmarks" / "rounds.py"
    monkeypatch.setattr(sys, "argv", [str(study), "--output", "my folder"])
    command, rest = origin().splitlines()
    assert command == "- Command: `python -m experiments.benchmarks.rounds --output 'my folder'`"
    assert re.fullmatch(
        r"- Commit: [^;]+; machine: \d+ CPU cores, load average \d+\.\d at the end; duration: [\d a-z]+;"
        r" date: \d{4}-\d\d-\d\d",
        rest,
    )
