from __future__ import annotations

import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from class_folders import write_images
from fake_flower import FakeFlower
from full_disk import full_after

from fedsynth.cli import main
from fedsynth.cli.deployment.app import staged_app
from fedsynth.cli.run import gpu_share
from fedsynth.config import KEYS, RunConfig
from fedsynth.locks import locked
from fedsynth.output import RunFolder

Refused = Callable[..., str]


def test_without_options_the_defaults_run_with_absolute_paths(flower: FakeFlower, project: Path) -> None:
    assert main(["run"]) == 0
    settings = flower.settings
    placed = {"output-dir": str(project / "runs"), "state-dir": str(project / ".fedsynth")}
    name = settings["run-name"]
    assert settings == {**RunConfig().to_run_config(), **placed, "run-name": name}
    assert name.endswith("-dfd-digits-0")
    connection = tomllib.loads((project / ".flwr" / "config.toml").read_text())["superlink"]
    assert connection == {"default": "local", "local": {"address": ":local:"}}
    assert flower.environments[0]["FLWR_HOME"] == str(project / ".flwr")


def test_dry_run_says_what_every_silo_is_asked_and_starts_nothing(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--dry-run", "--num-clients", "3", "--dfd-rounds", "6"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("each of 3 silos is asked at most\n  strategy            dfd\n")
    assert "  messages            describe, prepare, epsilon\n  noise queries       10\n" in said
    assert "  optimiser steps     400\n  network parameters  635 553\n  image size          8\n" in said
    assert "weights of an answer" not in said
    assert main(["run", "--dry-run", "--num-clients", "3", "--strategy", "fedavg"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"  weights of an answer 2\.5\d MB\n", said)
    assert "shards" not in said
    assert main(["run", "--dry-run", "--num-clients", "3", "--strategy", "fedavg", "--max-message-mb", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\n +in about [34] shards each way, as they are above max-message-mb\n", said)
    assert "  disk of the silo    2.54 MB in a round\n" in said
    assert "  bytes of a round    15.3 MB, of all silos and both ways\n" in said
    assert (flower.commands, list(project.iterdir())) == ([], [])


def test_natural_silos_are_counted_unless_their_number_is_given(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for silo in ("north", "south", "west"):
        write_images(project / "images" / silo, {"cat": 4, "dog": 3})
    words = ["run", "--dataset", "imagefolder", "--data-root", "images", "--partition", "natural"]
    assert main(words) == 0
    assert flower.settings["num-clients"] == 3
    assert "num-supernodes=3 " in " ".join(flower.commands[-1])
    assert main([*words, "--num-clients", "10"]) == 2
    assert "there are 3 natural silos (north, south, west): set num-clients = 3" in capsys.readouterr().err
    assert main([*words, "--test-silo", "west", "--run-name", "new-hospital"]) == 0
    assert flower.settings["num-clients"] == 2


def test_options_become_values_of_their_type(flower: FakeFlower) -> None:
    words = "--seed 3 --alpha 0.5 --learning-rate 1 --evaluate false --oversample true --num-rounds 4 --num-rounds 5"
    assert main(["run", *words.split(), "--block-out-channels", "8", "--run-name", "7", "--strategy=fedavg"]) == 0
    settings = flower.settings
    assert (settings["seed"], settings["alpha"], settings["learning-rate"], settings["num-rounds"]) == (3, 0.5, 1.0, 5)
    assert (settings["evaluate"], settings["oversample"]) == (False, True)
    assert [settings[key] for key in ("block-out-channels", "run-name", "strategy")] == ["8", "7", "fedavg"]
    assert isinstance(settings["learning-rate"], float)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--oversample", True),
        ("--oversample mine.toml", True),
        ("mine.toml --oversample --num-clients 2", True),
        ("--oversample true mine.toml", True),
        ("--oversample=true", True),
        ("--oversample --no-oversample", False),
        ("--no-oversample mine.toml", False),
        ("--oversample false mine.toml", False),
        ("--oversample=false", False),
    ],
)
def test_what_is_true_or_false_is_a_flag_or_has_the_word(
    words: str, value: bool, flower: FakeFlower, project: Path
) -> None:
    (project / "mine.toml").write_text(f"oversample = {str(not value).lower()}\nnum-samples = 30\n")
    assert main(["run", *words.split()]) == 0
    assert flower.settings["oversample"] is value
    assert flower.settings["num-samples"] == (30 if "mine.toml" in words else 1000)


@pytest.mark.parametrize(
    "words", ["--oversample=maybe", "--oversample yes", "--oversample 0", "--oversample=", "--oversample False"]
)
def test_another_word_for_true_is_refused(words: str, flower: FakeFlower, refused: Refused) -> None:
    value = words.replace("=", " ").partition(" ")[2]
    assert refused("run", *words.split()) == f"error: oversample = '{value}': must be true or false"


def test_help_shows_choices_flags_and_what_auto_becomes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--strategy", "dfd", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(
        "usage: fedsynth run [SETTING.toml] [--superlink LINK] [--dry-run] [--KEY VALUE ...] Run one"
    )
    assert "--device auto|cpu|cuda auto: CUDA when a process sees it (default: auto)" in text
    assert "--oversample, --no-oversample draw a silo's classes equally often, however rare (default: false)" in text
    assert "(default: auto, here 10)" in text
    assert "(default: auto, here cosine; linear with recipe = paper)" in text
    assert "--output-dir VALUE folder that receives one folder per run; text (default: runs)" in text


@pytest.mark.parametrize("form", ["option", "joined", "setting"])
def test_help_describes_every_key_those_of_the_chosen_strategy_first(
    form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('strategy = "krum"\n')
    words = {"option": ["--strategy", "krum"], "joined": ["--strategy=krum"], "setting": [str(tmp_path / "mine.toml")]}
    with pytest.raises(SystemExit) as stopped:
        main(["run", *words[form], "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out.split("\nstrategy krum:\n")[1]
    general, others = text.index("\nThe images and"), text.index("\nnot with strategy krum: ")
    assert text.index("--num-malicious-nodes VALUE") < general < text.index("--alpha VALUE") < others
    assert text.index("--num-rounds VALUE") < general
    assert text.index("--dfd-rounds VALUE") > others
    joined = " ".join(text.split())
    assert "rounds that train-steps are spread over; " in joined
    assert "; 'auto' or a whole number >= 1 (default: auto, here 20)" in joined
    assert "--prediction auto|epsilon|v|x0 what the network predicts" in joined
    assert "or the image (default: auto, here x0; epsilon with recipe = paper)" in joined
    assert "at its highest; 'auto' or a number > 0 (default: auto, here 0.0015; 0.0002 with recipe = paper)" in joined
    assert "timesteps T; 'auto' or a whole number >= 1 and <= 100000 (default: auto, here 1000)" in joined
    for name, key in KEYS.items():
        first_words = re.escape(" ".join(key.meaning.split()[:2]))
        assert re.search(rf"--{name}(, --no-{name}| VALUE| \S+\|\S+) {first_words}", joined), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stratgy dfd", "unknown option '--stratgy': did you mean '--strategy'?"),
        ("--strat dfd", "unknown option '--strat'"),
        ("--seeds=3", "unknown option '--seeds=3': did you mean '--seed'?"),
        ("--xyzzy", "unknown option '--xyzzy'; 'fedsynth run --help' lists all"),
        ("a.toml b.toml", "unknown option 'b.toml'"),
        ("--seed three", "seed = 'three': must be"),
        ("--seed true", "seed = True: must be"),
        ("--alpha nan", "alpha = nan: must be"),
        ("--block-out-channels 8,x", "block-out-channels = '8,x'"),
        ("--strategy fedavg --temperature 4", "temperature = 4.0: acts with strategy = 'dfd' only; leave"),
        ("--num-clients 5000", "num-clients = 5000 is out of range"),
        ("--dataset mnist --data-root nowhere", "MNIST is missing"),
        ("--dataset imagefolder --data-root images", "no images in class folder 'dog'"),
        ("--dataset imagefolder --data-root torn --num-clients 1", "torn.png"),
        ("--output-dir torn/cat/0.png/runs", "a file stands where a folder is needed"),
        ("old.toml", "setting 'old.toml': No such file or directory"),
        ("images", "Is a directory"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    words: str, said: str, flower: FakeFlower, project: Path, refused: Refused
) -> None:
    write_images(project / "images", {"cat": 3, "dog": 0})
    (write_images(project / "torn", {"cat": 3, "dog": 3}) / "dog" / "torn.png").write_bytes(b"\x89PNG\r\n")
    assert said in refused("run", *words.split())
    assert flower.commands == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed = ", "setting 'mine.toml': not TOML"),
        (b"\xff\xfe\x00", "setting 'mine.toml': not TOML: torn UTF-16: save the file as UTF-8"),
        ("seed = 1".encode("utf-16-le"), "not TOML: UTF-16 without a byte-order mark"),
        (b"sede = 1", "unknown config key 'sede': did you mean 'seed'?"),
        (b"[run]\nseed = 1", "unknown config key 'run'"),
        (b"seed = [1, 2]", "seed = [1, 2]: must be"),
    ],
)
def test_bad_setting_files_are_refused(
    content: bytes, said: str, flower: FakeFlower, project: Path, refused: Refused
) -> None:
    (project / "mine.toml").write_bytes(content)
    assert said in refused("run", "mine.toml")
    assert flower.commands == []


def test_setting_file_and_options_that_win_over_it(
    flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    setting = 'strategy = "pooled"\nseed = 4\nalpha = 2.0\noutput-dir = "~/out"\n'
    (project / "mine.toml").write_bytes(setting.encode("utf-16"))  # as PowerShell writes it
    assert main(["run", "mine.toml", "--seed", "5"]) == 0
    settings = flower.settings
    assert [settings[key] for key in ("strategy", "seed", "alpha")] == ["pooled", 5, 2.0]
    assert settings["output-dir"] == str(tmp_path / "me" / "out")
    assert RunFolder(tmp_path / "me" / "out" / settings["run-name"]).results.is_file()


def test_command_is_what_flower_needs_and_is_printed_to_be_copied(
    flower: FakeFlower, project: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
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
    assert "exists and is not empty" in refused("run", "--run-name", "one two")
    assert len(flower.commands) == 1


def test_flower_home_that_cannot_be_written_is_named(
    flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (project / "file").write_text("a file")
    monkeypatch.setenv("FLWR_HOME", str(project / "file"))
    assert f"FLWR_HOME = '{project / 'file'}'" in refused("run", "--run-name", "r", started=True)
    assert not (project / "runs" / "r").exists()


def test_run_without_results_fails_and_points_to_the_log(flower: FakeFlower, project: Path, refused: Refused) -> None:
    flower.leave = "log"
    line = refused("run", "--run-name", "r", started=True)
    assert f"the run ended without results; the reason stands above and in {project}/.flwr/run-logs/r.txt and" in line
    assert line.endswith(f" {project}/runs/r/log.txt")
    assert (project / "runs" / "r" / "log.txt").is_file()
    flower.leave = "nothing"
    assert "the run ended without results" in refused("run", "--run-name", "empty", started=True)
    assert not (project / "runs" / "empty").exists()


def test_superlinks_are_stopped_and_empty_folders_removed_whatever_happens(
    flower: FakeFlower, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr("fedsynth.cli.run.stop_superlinks", lambda home: stopped.append(home))
    assert main(["run", "--run-name", "r"]) == 0
    flower.leave, flower.raises = "nothing", KeyboardInterrupt()
    assert main(["run", "--run-name", "interrupted"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    flower.raises = FileNotFoundError("flwr")
    with pytest.raises(FileNotFoundError):
        main(["run", "--run-name", "absent"])
    assert len(stopped) == 3
    assert [path.name for path in (project / "runs").iterdir()] == ["r"]


def test_full_disk_of_flower_home_is_named_at_every_write(
    flower: FakeFlower, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, writes, status = project / ".flwr", 0, 2
    staged_app(home)  # its hundreds of files have a test of their own
    while status:
        for path in home.iterdir():
            if path.name != "staged":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with full_after(writes, home):
            status = main(["run", "--run-name", "r"])
        said = capsys.readouterr().err
        assert status in (0, 2)
        assert ("no space left" in said.lower() and str(home) in said) == (status == 2)
        assert (project / "runs" / "r").exists() == (status == 0)
        writes += 1
    assert writes > 2
    assert len(flower.commands) == 1


def test_two_runs_that_begin_at_once_do_not_share_a_home(flower: FakeFlower, project: Path, refused: Refused) -> None:
    assert main(["run", "--run-name", "first"]) == 0
    with locked(project / ".flwr" / "run.lock", "it"):
        said = refused("run", "--run-name", "second", started=True)
    assert f"FLWR_HOME '{project}/.flwr' is in use by process {os.getpid()} on " in said
    assert [path.name for path in (project / "runs").iterdir()] == ["first"]


def share(monkeypatch: pytest.MonkeyPatch, devices: int, cpus: int, silos: int, device: str = "auto") -> float:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    return gpu_share(RunConfig.from_run_config({"num-clients": silos, "device": device}))


def test_gpu_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, 1, 16, 10) == 0.0999
    assert share(monkeypatch, 1, 16, 10, "cpu") == 0.0
    assert share(monkeypatch, 1, 16, 1) == 0.9999
    assert share(monkeypatch, 1, 4, 10) == 0.2499
    assert share(monkeypatch, 8, 64, 4) == 1.0
    assert share(monkeypatch, 0, 16, 10) == 0.0


@pytest.mark.parametrize("devices", [1, 4])
def test_gpu_shares_of_silos_that_run_at_once_fit_in_single_precision(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in range(1, 100):
        part = np.float32(share(monkeypatch, devices, 512, each * devices))
        assert each * part <= 1
        assert sum([part] * each, np.float32(0)) <= 1
        # No more of the GPU lies idle than a share's last digit.
        assert (each + 1) * part > 1 - each * 1e-4
