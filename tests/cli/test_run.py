from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest
from fake_flower import FakeFlower, refused

from fedsynth.cli import main
from fedsynth.config import KEYS, RunConfig
from fedsynth.output import RunFolder


def test_without_options_the_defaults_run_with_absolute_paths(flower: FakeFlower, project: Path) -> None:
    assert main(["run"]) == 0
    changed = {"output-dir", "state-dir", "run-name"}
    defaults = RunConfig().to_run_config()
    settings = flower.settings
    assert {key: value for key, value in settings.items() if key not in changed} == {
        key: value for key, value in defaults.items() if key not in changed
    }
    assert settings["output-dir"] == str(project / "runs")
    assert settings["state-dir"] == str(project / ".fedsynth")
    assert settings["run-name"].endswith("-dfd-digits-0")
    assert settings["data-root"] == ""


def test_options_become_values_of_their_type(flower: FakeFlower) -> None:
    words = "--seed 3 --alpha 0.5 --learning-rate 1 --evaluate false --oversample true --num-rounds 4 --num-rounds 5"
    assert main(["run", *words.split(), "--block-out-channels", "8", "--run-name", "7", "--strategy=fedavg"]) == 0
    settings = flower.settings
    expected = {
        "seed": 3,
        "alpha": 0.5,
        "learning-rate": 1.0,
        "evaluate": False,
        "oversample": True,
        "num-rounds": 5,
        "block-out-channels": "8",
        "run-name": "7",
        "strategy": "fedavg",
    }
    assert {key: settings[key] for key in expected} == expected
    assert isinstance(settings["learning-rate"], float)


def test_every_key_is_an_option_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, key in KEYS.items():
        assert f"--{name} VALUE {' '.join(key.meaning.split()[:2])}" in text


@pytest.mark.parametrize("form", ["option", "joined", "setting"])
def test_help_shows_the_keys_of_the_chosen_strategy_first(
    form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('strategy = "krum"\n')
    words = {"option": ["--strategy", "krum"], "joined": ["--strategy=krum"], "setting": [str(tmp_path / "mine.toml")]}
    with pytest.raises(SystemExit):
        main(["run", *words[form], "--help"])
    text = capsys.readouterr().out.split("\nstrategy krum:\n")[1]
    general, others = text.index("\nThe images and"), text.index("\nnot with strategy krum: ")
    assert text.index("--num-malicious-nodes VALUE") < general < text.index("--alpha VALUE") < others
    assert text.index("--num-rounds VALUE") < general
    assert text.index("--dfd-rounds VALUE") > others
    assert "rounds that train-steps are spread over; 'auto' or a whole number >= 1 (default: 20)" in " ".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stratgy", "dfd"], "unknown option '--stratgy': did you mean 'strategy'?"),
        (["--strat", "dfd"], "unknown option '--strat'"),
        (["--seeds=3"], "unknown option '--seeds=3': did you mean 'seed'?"),
        (["--xyzzy"], "unknown option '--xyzzy'; 'fedsynth run --help' lists all"),
        (["a.toml", "b.toml"], "unknown option 'b.toml'"),
        (["--seed", "three"], "seed = 'three': must be"),
        (["--seed", "1.5"], "seed = 1.5: must be"),
        (["--seed", "-1"], "seed = -1: must be"),
        (["--seed", "true"], "seed = True: must be"),
        (["--alpha", "nan"], "alpha = nan: must be"),
        (["--evaluate", "1"], "evaluate = 1: must be"),
        (["--strategy", "fedavgg"], "unknown strategy 'fedavgg': did you mean 'fedavg'?"),
        (["--block-out-channels", "8,x"], "block-out-channels = '8,x'"),
        (["--strategy=krum", "--num-rounds=20", "--train-steps=10"], "num-rounds = 20: must be <= train-steps = 10"),
        (["--strategy", "fedavg", "--temperature", "4"], "temperature = 4.0: acts with strategy = 'dfd' only; leave"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    words: list[str], said: str, flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *words)
    assert flower.commands == []
    assert list(project.iterdir()) == []


def test_setting_file_and_options_that_win_over_it(flower: FakeFlower, project: Path) -> None:
    (project / "mine.toml").write_text('strategy = "pooled"\nseed = 4\nalpha = 2.0\noutput-dir = "out"\n')
    assert main(["run", "mine.toml", "--seed", "5"]) == 0
    settings = flower.settings
    assert [settings[key] for key in ("strategy", "seed", "alpha")] == ["pooled", 5, 2.0]
    assert settings["output-dir"] == str(project / "out")
    assert RunFolder(project / "out" / settings["run-name"]).results.is_file()


def test_paths_of_the_home_folder_are_found(
    flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (project / "mine.toml").write_text('output-dir = "~/results"\n')
    assert main(["run", "mine.toml"]) == 0
    assert flower.settings["output-dir"] == str(tmp_path / "me" / "results")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed = ", "setting 'mine.toml': not TOML"),
        (b"\xff\xfe\x00", "setting 'mine.toml': not TOML"),
        (b"sede = 1", "unknown config key 'sede': did you mean 'seed'?"),
        (b"[run]\nseed = 1", "unknown config key 'run'"),
        (b"seed = [1, 2]", "seed = [1, 2]: must be"),
        (b'seed = "1"', "seed = '1': must be"),
        (None, "setting 'mine.toml': No such file or directory"),
    ],
)
def test_bad_setting_files_are_refused(
    content: bytes | None, said: str, flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (project / "mine.toml").write_bytes(content)
    assert said in refused(capsys, "mine.toml")
    assert flower.commands == []
    assert [path.name for path in project.iterdir()] == (["mine.toml"] if content is not None else [])


def test_folder_as_setting_is_refused(flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Is a directory" in refused(capsys, str(project))


def test_command_is_what_flower_needs_and_is_printed_to_be_copied(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--num-clients", "4", "--run-name", "one two"]) == 0
    (command,) = flower.commands
    assert command[:2] == ["flwr", "run"]
    assert (Path(command[2]) / "pyproject.toml").is_file()
    assert command[3:5] == ["local", "--stream"]
    federation = command[command.index("--federation-config") + 1]
    assert federation == "num-supernodes=4 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    out = capsys.readouterr().out
    printed = next(line for line in out.splitlines() if line.startswith("FLWR_HOME="))
    assert shlex.split(printed) == [f"FLWR_HOME={project / '.flwr'}", *command]
    assert f"report     {project / 'runs' / 'one two' / 'report.html'}" in out


def test_flower_finds_its_connection_and_environment(flower: FakeFlower, project: Path) -> None:
    main(["run"])
    connection = tomllib.loads((project / ".flwr" / "config.toml").read_text())["superlink"]
    assert connection == {"default": "local", "local": {"address": ":local:"}}
    assert flower.environments[0]["FLWR_HOME"] == str(project / ".flwr")
    assert flower.environments[0]["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_run_without_results_fails_and_points_to_the_log(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flower.leave = "log"
    line = refused(capsys, "--run-name", "r")
    assert line.endswith(f"the run ended without results; the reason stands above and in {project}/runs/r/log.txt")
    assert (project / "runs" / "r" / "log.txt").is_file()


def test_run_that_left_nothing_leaves_no_folder(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flower.leave = "nothing"
    assert "the run ended without results" in refused(capsys, "--run-name", "r")
    assert not (project / "runs" / "r").exists()


def test_interrupt_is_no_traceback_and_leaves_no_empty_folder(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flower.leave, flower.raises = "nothing", KeyboardInterrupt()
    assert main(["run", "--run-name", "r"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not (project / "runs" / "r").exists()


def test_superlinks_are_stopped_whatever_happens(flower: FakeFlower, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr("fedsynth.cli.run.stop_superlinks", lambda home: stopped.append(home))
    for error in (None, KeyboardInterrupt()):
        flower.raises = error
        main(["run", "--run-name", f"r{error is None}"])
    assert len(stopped) == 2


def test_flower_that_is_not_there_is_no_silent_success(flower: FakeFlower, project: Path) -> None:
    flower.leave, flower.raises = "nothing", FileNotFoundError("flwr")
    with pytest.raises(FileNotFoundError):
        main(["run", "--run-name", "r"])
    assert not (project / "runs" / "r").exists()
