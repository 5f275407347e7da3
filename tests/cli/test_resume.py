from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_flower import FakeFlower

from fedsynth.cli import main
from fedsynth.config import KEYS, RunConfig, Scalar
from fedsynth.output import RunFolder

WORDS = "--strategy fedavg --run-name first --num-rounds 4 --train-steps 40 --seed 3 --alpha 0.5"


@pytest.fixture
def earlier(flower: FakeFlower, project: Path) -> RunFolder:
    """A run of four rounds, with the configuration that the server leaves behind."""
    assert main(["run", *WORDS.split()]) == 0
    folder = RunFolder(project / "runs" / "first")
    resolved: dict[str, Scalar] = {"sampler": "ddpm", "sample-from": "raw", "fraction-train": 1.0}
    folder.write_config({"config": {**flower.settings, **resolved}, "resolved": sorted(resolved)})
    flower.commands.clear()
    return folder


def config_of(folder: RunFolder) -> dict[str, Scalar]:
    return dict(json.loads(folder.config.read_text())["config"])


@pytest.mark.parametrize("form", ["./runs/../runs/first/", "~/project/runs/first", "{}"])
def test_configuration_of_the_run_is_taken_over(
    form: str, flower: FakeFlower, earlier: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["run", "--resume", form.format(earlier.path)]) == 0
    expected = {**RunConfig().to_run_config(), **config_of(earlier), "resume": str(earlier.path)}
    assert flower.settings == expected
    assert [path.name for path in earlier.path.parent.iterdir()] == ["first"]
    command = flower.commands[-1]
    assert "num-supernodes=10" in command[command.index("--federation-config") + 1]


def test_run_is_continued_from_elsewhere_and_where_it_was_moved_to(
    flower: FakeFlower, earlier: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = config_of(earlier)
    moved = tmp_path / "archive" / "renamed"
    shutil.move(earlier.path, moved)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", "--resume", "../archive/renamed"]) == 0
    settings = flower.settings
    place = {"resume": str(moved), "output-dir": str(moved.parent), "run-name": "renamed"}
    assert {key: settings[key] for key in place} == place
    assert settings["state-dir"] == before["state-dir"]


CHANGES = """
--license cc-by-4.0
--state-dir there --device cpu --num-rounds 8 --train-steps 50 --node-timeout 5 --reply-timeout 6.5 --round-timeout 4
--min-replies 2
--fast-replies true --evaluate false --evaluate-silos true --feature-extractor pixels --classifiers mlp
--feature-extractor-weights-path weights.pth --classifier-seeds 1 --resnet-weights-path resnet.pth
--membership-inference false
"""


def test_every_free_key_can_be_given(flower: FakeFlower, earlier: RunFolder, project: Path) -> None:
    of_other_runs = {"data-root", "download", "reference-root", "generator-steps", "max-message-mb"}
    of_other_runs |= {"autoencoder", "init-from", "base-model", "key-file", "tracker", "ray-address"}
    of_other_runs |= {"ledger-url", "ledger-contract", "ledger-key-file"}
    free = {name for name, key in KEYS.items() if key.may_change}
    words = CHANGES.split()
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert given == free - {"resume", "run-name", "output-dir"} - of_other_runs
    assert main(["run", "--resume", "runs/first", *words]) == 0
    settings = flower.settings
    assert settings["state-dir"] == str(project / "there")
    assert [settings[key] for key in ("num-rounds", "train-steps", "min-replies")] == [8, 50, 2]
    assert {key: value for key, value in settings.items() if key not in free} == {
        key: value for key, value in config_of(earlier).items() if key not in free
    }


@pytest.mark.parametrize(
    ("had", "options", "steps"),
    [(4, "8", 80), (4, "3", 30), (4, "8 --train-steps 60", 60), ("auto", "8", 40)],
)
def test_more_rounds_bring_steps_in_proportion(
    had: Scalar, options: str, steps: int, flower: FakeFlower, earlier: RunFolder
) -> None:
    earlier.write_config({"config": {**config_of(earlier), "num-rounds": had}, "resolved": []})
    assert main(["run", "--resume", "runs/first", "--num-rounds", *options.split()]) == 0
    assert flower.settings["train-steps"] == steps


def test_models_of_silos_that_are_trained_already_are_trained_no_longer(
    flower: FakeFlower, earlier: RunFolder, refused: Callable[..., str]
) -> None:
    settings = RunConfig.from_run_config({"strategy": "dfd", "state-dir": str(config_of(earlier)["state-dir"])})
    earlier.write_config({"config": settings.to_run_config(), "resolved": []})
    said = refused("run", "--resume", "runs/first", "--train-steps", "50")
    assert "train-steps = 50: the run to resume has 400, and it may change only with a strategy that has" in said
    assert flower.commands == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mine.toml --resume runs/first", "--resume takes over the configuration of the run: leave out 'mine.toml'"),
        ("--resume runs/first --seed 1", "seed = 1: the run to resume has 3; give the same, or start another run"),
        ("--resume runs/first --sample-from auto", "sample-from = 'auto': the run to resume has 'raw'"),
        ("--resume runs/first --num-rounds four", "num-rounds = 'four': must be"),
        ("--resume runs/first --num-rounds 0", "num-rounds = 0: must be"),
        ("--resume runs/first --num-rounds true", "num-rounds = True: must be"),
        ("--resume runs/first --sede 1", "unknown option '--sede': did you mean '--seed'?"),
        ("--resume runs/first --run-name new", "run-name = 'new': a run continues in its own folder; leave out --run"),
        ("--resume runs/first --output-dir out", "output-dir = 'out': a run continues in its own folder; leave out"),
        ("--resume runs/frist", "runs/frist' is no run folder (it holds no config.json): give the folder of a run"),
        ("--resume torn", "torn/config.json' is damaged: restore it, or start another run"),
        ("--resume=", "is no run folder"),
        ("resumed.toml", "setting 'resumed.toml': resume = 'runs/first': give --resume and no setting file instead"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_left_alone(
    words: str, said: str, flower: FakeFlower, earlier: RunFolder, project: Path, refused: Callable[..., str]
) -> None:
    (project / "torn").mkdir()
    (project / "torn" / "config.json").write_text('{"config": {"seed": ')
    (project / "mine.toml").write_text("seed = 3\n")
    (project / "resumed.toml").write_text('resume = "runs/first"\n')
    assert said in refused("run", *words.split())
    assert flower.commands == []


def test_results_of_the_first_time_are_no_results_of_the_second(
    flower: FakeFlower, earlier: RunFolder, refused: Callable[..., str]
) -> None:
    flower.leave = "log"
    assert "the run ended without results" in refused("run", "--resume", "runs/first", started=True)
    assert earlier.results.is_file()


def test_interrupt_leaves_the_run_to_be_resumed_again(flower: FakeFlower, earlier: RunFolder) -> None:
    flower.leave, flower.raises = "nothing", KeyboardInterrupt()
    before = {path: path.read_bytes() for path in earlier.path.iterdir()}
    assert main(["run", "--resume", "runs/first"]) == 130
    assert {path: path.read_bytes() for path in earlier.path.iterdir()} == before
    flower.leave, flower.raises = "results", None
    assert main(["run", "--resume", "runs/first"]) == 0
