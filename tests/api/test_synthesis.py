from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.utils import logging as diffusers_logging
from shown_to_others import files_that_name_this_machine
from tiny_runs import run_tiny, tiny_settings, without_pictures

import fedsynth
from fedsynth.api.keywords import flat
from fedsynth.api.synthesis import _interruptible
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.output import read_dataset
from strategies.averaging.fedavg import FedAvg


def test_the_package_is_imported_without_torch_and_knows_its_names() -> None:
    code = "import fedsynth, sys; print('torch' in sys.modules, set(fedsynth.__all__) <= {*dir(fedsynth)})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'synthesize': did you mean 'synthesise'"):
        _ = fedsynth.synthesize  # type: ignore[attr-defined]


def test_the_images_are_those_of_the_same_settings_through_the_apps(run: fedsynth.Run, tmp_path: Path) -> None:
    through_apps = run_tiny(tiny_settings(tmp_path), report=False)
    assert np.array_equal(run.dataset.images, read_dataset(through_apps.synthetic).images)
    assert "dataset" in through_apps.log.read_text()
    # Which is there for --resume, and says so.
    assert files_that_name_this_machine(through_apps.path) == {"machine.json"}


def test_without_progress_nothing_is_said_and_the_log_has_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("fedsynth")
    before = logger.level, logger.propagate, [*logger.handlers], diffusers_logging.get_verbosity()
    diffusers_logging.enable_progress_bar()
    short = {"num_rounds": 1, "num_samples": 10, "train_steps": 3}
    with without_pictures():
        run = fedsynth.synthesise(tiny_settings(tmp_path, strategy="fedavg"), progress=False, **short)
    assert capfd.readouterr() == ("", "")
    assert "waiting for 3 silos" in run.folder.log.read_text()
    assert before == (logger.level, logger.propagate, [*logger.handlers], diffusers_logging.get_verbosity())
    assert diffusers_logging.is_progress_bar_enabled()
    # More rounds, in the same folder, after the one that is there.
    first = run.metrics
    with without_pictures():
        further = fedsynth.synthesise(resume=run.path, num_rounds=2, progress=False)
    assert further.path == run.path
    assert (further.metrics[0], len(further.metrics)) == (first[0], 2)
    assert further.config.training.train_steps == 6


def test_lines_go_where_logging_says(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num-clients = 2000 is out of range"):
        fedsynth.synthesise(tiny_settings(tmp_path, num_clients=2000, samples_per_client=0))
    assert "error: " in caplog.text


def test_numbers_of_numpy_are_numbers() -> None:
    found = flat({"num_clients": np.int64(3), "alpha": np.float32(0.5), "evaluate": False})
    assert found == {"num-clients": 3, "alpha": 0.5, "evaluate": False}
    assert [type(value) for value in found.values()] == [int, float, bool]


def test_keywords_go_before_a_file_and_speak_python(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('strategy = "fedavg"\nnum-clients = 7\n')
    with pytest.raises(UserError, match=r"min-replies = 9: must be <= num-clients = 8"):
        fedsynth.synthesise(tmp_path / "mine.toml", num_clients=8, min_replies=9)
    assert flat({"data_root": Path("a"), "classifiers": ["mlp", "cnn"], "strategy": FedAvg, "seed": 3}) == {
        "data-root": "a",
        "classifiers": "mlp,cnn",
        "strategy": "strategies.averaging.fedavg:FedAvg",
        "seed": 3,
    }
    assert flat(RunConfig()) == RunConfig().to_run_config()
    with pytest.raises(UserError, match="unknown config key 'num-cleints': did you mean 'num-clients'"):
        fedsynth.synthesise(num_cleints=3)


def _nested() -> type:
    class Mine(FedAvg):
        """Nobody else can import it."""

    return Mine


@pytest.mark.parametrize(
    ("silos", "keywords", "said"),
    [
        ({"a": {"data_path": "x", "model": "y"}}, {}, "unknown word of silo 'a' 'model': did you mean 'model_path'"),
        (["a"], {}, "silos: an object of list: give a mapping of names to the folders"),
        ({}, {}, "silos: none is named: give a mapping"),
        (None, {"settings": 5}, "settings: an object of int: give a TOML file"),
        (None, {"strategy": object()}, "strategy: an object of object: give .* or the class or function itself"),
        (None, {"seed": [object()]}, "seed: an object of object: give a number"),
        ({"a": {"model_path": "x"}}, {}, "silo 'a' has no data_path"),
        ({"a": "x"}, {"dataset": "digits"}, "dataset = 'digits': with silos the images are theirs"),
        ({"a": "x"}, {"num_clients": 2}, "num-clients = 2: there are 1 silos"),
        (
            {"a": "x", "b": {"data_path": ".", "policy_path": "y"}, "c": "z"},
            {"output_dir": "z"},
            r"no folder 'x' \(silo 'a', data_path\); no file 'y' \(silo 'b', policy_path\); no folder 'z' \(silo 'c'",
        ),
        (None, {"dataset": lambda root, image_size: None}, "dataset: a lambda cannot be imported by name"),
        (None, {"strategy": _nested()}, r"strategy: '_nested.<locals>.Mine' cannot be imported .* the top of a module"),
    ],
)
def test_what_says_nothing_of_a_silo_is_refused(silos: Any, keywords: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fedsynth.synthesise(silos=silos, **keywords)


def test_ctrl_c_ends_a_run_and_not_one_silo() -> None:
    # A shell starts its background commands with Ctrl-C ignored, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def answer(message: Any, context: Any) -> Any:
        """Turn whatever goes wrong into an answer, as the ClientApp does."""
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        except BaseException as error:
            return error
        return "answer"

    try:
        with pytest.raises(KeyboardInterrupt), _interruptible(answer) as ask:
            ask(None, None)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
