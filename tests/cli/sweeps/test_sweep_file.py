from __future__ import annotations

from pathlib import Path

import pytest

from fedsynth.cli.sweeps.sweep_file import Sweep, read_sweep
from fedsynth.cli.tables.run_groups import config_hash
from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import UserError


def sweep_of(tmp_path: Path, text: str, **given: Scalar) -> Sweep:
    path = tmp_path / "my-sweep.toml"
    path.write_text(text)
    return read_sweep(path, {key.replace("_", "-"): value for key, value in given.items()})


def values_of(sweep: Sweep, *keys: str) -> list[tuple[Scalar, ...]]:
    return [tuple(run.config.to_run_config()[key] for key in keys) for run in sweep.runs]


def test_a_grid_is_every_combination_for_every_seed(tmp_path: Path) -> None:
    text = 'seeds = [3, 5]\n[grid]\nstrategy = ["fedavg", "krum"]\nalpha = [0.1, 1]\n'
    sweep = sweep_of(tmp_path, text)
    rows = [("fedavg", 0.1), ("fedavg", 1.0), ("krum", 0.1), ("krum", 1.0)]
    expected = [(seed, *row) for seed in (3, 5) for row in rows]
    assert values_of(sweep, "seed", "strategy", "alpha") == expected
    assert sweep.runs[1].row == "strategy=fedavg, alpha=1"
    assert sweep.runs[1].folder.name == "strategy=fedavg-alpha=1-3"


def test_zipped_values_go_together(tmp_path: Path) -> None:
    text = "strategy = 'krum'\n[zip]\nnum-rounds = [5, 10]\ntrain-steps = [50, 100]\n[grid]\nalpha = [1.0, 2.0]\n"
    sweep = sweep_of(tmp_path, text)
    expected = [(1.0, 5, 50), (1.0, 10, 100), (2.0, 5, 50), (2.0, 10, 100)]
    assert values_of(sweep, "alpha", "num-rounds", "train-steps") == expected


def test_methods_have_keys_and_seeds_of_their_own(tmp_path: Path) -> None:
    text = """
    seeds = [0, 1]
    train-steps = 70
    [[method]]
    name = "DfD (paper)"
    dfd-preset = "paper"
    seeds = [0]
    [[run]]
    name = "krum"
    strategy = "krum"
    train-steps = 80
    """
    sweep = sweep_of(tmp_path, text)
    assert [(run.row, run.seed) for run in sweep.runs] == [("DfD (paper)", 0), ("krum", 0), ("krum", 1)]
    assert values_of(sweep, "dfd-preset", "train-steps") == [("paper", 70), ("default", 80), ("default", 80)]
    assert [run.folder.name for run in sweep.runs] == ["DfD-paper-0", "krum-0", "krum-1"]


def test_base_then_keys_in_place_then_options_then_rows(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = 4\nalpha = 0.3\nbatch-size = 8\ntrain-steps = 40\nnum-samples = 20\n")
    text = 'base = "base.toml"\nbatch-size = 16\ntrain-steps = 50\n[grid]\nnum-samples = [10]\n'
    sweep = sweep_of(tmp_path, text, train_steps=60)
    expected = [(4, 0.3, 16, 60, 10)]
    assert values_of(sweep, "seed", "alpha", "batch-size", "train-steps", "num-samples") == expected


def test_without_rows_the_strategy_names_the_only_one(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 'strategy = "pooled"\nseeds = [1, 2]\noutput-dir = "elsewhere"\n')
    assert [run.name for run in sweep.runs] == ["pooled, seed 1", "pooled, seed 2"]
    assert sweep.folder == Path("elsewhere").absolute() / "my-sweep"
    assert sweep.runs[0].folder == sweep.folder / "pooled-1"


def test_a_setting_of_all_goes_to_the_rows_that_take_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("alpha = 0.3\nprior = 'size'\nnum-rounds = 7\n")
    text = """
    base = "base.toml"
    temperature = 2.0
    [[method]]
    name = "a"
    [[method]]
    name = "b"
    sampler = "ddim"
    [[method]]
    name = "c"
    strategy = "krum"
    [[method]]
    name = "d"
    strategy = "pooled"
    partition = "iid"
    """
    sweep = sweep_of(tmp_path, text, dfd_rounds=4)
    auto = "auto"
    assert values_of(sweep, "alpha", "prior", "num-rounds", "temperature", "dfd-rounds") == [
        (0.3, "size", auto, 2.0, 4),
        (0.3, "size", auto, auto, 4),
        (0.3, auto, 7, auto, auto),
        (0.1, "size", auto, auto, auto),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gird]\nalpha = [1.0]", "unknown config key 'gird': did you mean 'grid'?"),
        ("[grid]\nalhpa = [0.1]", "unknown config key 'alhpa': did you mean 'alpha'?"),
        ("[grid]\nalpha = 0.1", "[grid] alpha = 0.1: must be a list of values"),
        ("[grid]\nalpha = [0.1, -1.0]", "row 'alpha=-1.0': alpha = -1.0: must be a number > 0"),
        ("grid = 3", "'grid' must be a table"),
        ("[zip]\nalpha = [1.0]\nbatch-size = [1, 2]", "must be equally long: alpha has 1, batch-size has 2 values"),
        ("[zip]\nalpha = [0.1]\n[grid]\nalpha = [0.2]", "'alpha' stands in [grid] and in [zip]: set it in one place"),
        ("seeds = []", "seeds = []: must be a list of whole numbers >= 0"),
        ("seeds = [true]", "seeds = [True]: must be a list of whole numbers"),
        ("seeds = [1, 1]", "seeds = [1, 1]: name each once"),
        ("seed = 1", "'seed' cannot be set: give seeds, a list"),
        ('run-name = "x"', "'run-name' cannot be set: rows and seeds name the runs"),
        ("method = 3", "'method' must be tables: write [[method]]"),
        ("[[method]]\nalpha = 0.1", "a row has name = None: give every [[method]] and [[run]] a name"),
        ("[[method]]\nname = 'a'\nalhpa = 1", "row 'a': unknown config key 'alhpa': did you mean 'alpha'?"),
        ("[[method]]\nname = 'a'\nalpha = 1.0\n[grid]\nalpha = [2.0]", "row 'a': 'alpha' is varied by [grid] or [zip]"),
        ("[[method]]\nname = 'a b'\n[[run]]\nname = 'A-B'\nalpha = 1.0", "rows 'a b' and 'A-B' would share a folder"),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'b'", "rows 'a' and 'b' are the same run: no setting of them differs"),
        (
            "strategy = 'krum'\ntemperature = 2.0",
            "acts with strategy = 'dfd' only; leave it out or set strategy = 'dfd'; no row",
        ),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'b'\nnum-rounds = 4", "row 'b': num-rounds = 4: acts with strategy = "),
        ("base = 'none.toml'", "none.toml': No such file or directory"),
        ("base = 'my-sweep.toml'", "is a sweep: start it with 'fedsynth sweep"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        sweep_of(tmp_path, text)
    assert str(error.value).startswith(f"sweep '{tmp_path / 'my-sweep.toml'}': ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": 0.5}, "--alpha cannot be given: the sweep sets it row by row"),
        ({"seed": 5}, "--seed cannot be given: give seeds, a list"),
        ({"run_name": "x"}, "--run-name cannot be given: rows and seeds name the runs"),
    ],
)
def test_options_cannot_undo_what_the_file_varies(given: dict[str, Scalar], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        sweep_of(tmp_path, "seeds = [0]\n[grid]\nalpha = [1.0, 2.0]\n", **given)
    assert values_of(sweep_of(tmp_path, "alpha = 1.0", seed=6), "seed") == [(6,)]


def config_of(**changes: Scalar) -> RunConfig:
    return RunConfig.from_run_config({key.replace("_", "-"): value for key, value in changes.items()})


def test_a_hash_is_what_a_run_computes_whatever_the_program_filled_in() -> None:
    plain = config_hash(config_of())
    free = config_of(output_dir="x", run_name="y", state_dir="z", device="cpu", node_timeout=3.0)
    assert config_hash(free) == plain
    deciding: list[dict[str, Scalar]] = [{"seed": 1}, {"alpha": 0.2}, {"min_replies": 3}, {"evaluate": False}]
    deciding += [{"dataset": "imagefolder", "data_root": root} for root in ("/a", "/b")]
    assert len({plain, *(config_hash(config_of(**changes)) for changes in deciding)}) == 7
    assert config_hash(config_of(dataset="mnist", data_root="/a")) == config_hash(config_of(dataset="mnist"))
    filled = config_of().resolve({"dfd-rounds": 10, "prior": "class"})
    assert config_hash(filled) == config_hash(config_of())
    assert config_hash(config_of(dfd_rounds=10)) != config_hash(config_of())
