from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hand_made_runs import make_run
from tiny_runs import run_tiny, tiny_settings

import fedsynth.tracking
from fedsynth.cli import main
from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.messages import transport
from fedsynth.output import RunFolder
from fedsynth.spec import ImageSpec
from strategies.cooperation.dfd import DfD
from strategies.run import tracking
from strategies.run.tracking import Tracking, tracked

Told = tuple[dict[str, list[int]], dict[str, str], list[str]]
"""Steps of every curve, settings, and names of files and pictures."""


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


@pytest.fixture
def quiet_mlflow() -> Iterator[None]:
    """What MLflow changes of this process: it sets up logging of its own."""
    loggers = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    yield
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)


def told_tensorboard(folder: RunFolder) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    tags = read.Tags()
    texts = {tag: read.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    lines = [line.split("|") for line in texts.pop("settings/text_summary").splitlines()[2:]]
    settings = {line[1].strip(): line[2].strip(" `") for line in lines}
    curves = {tag: [point.step for point in read.Scalars(tag)] for tag in tags["scalars"]}
    pictures = [f"{tag} {image.step}" for tag in tags["images"] for image in read.Images(tag)]
    return curves, settings, [*pictures, *(text.removesuffix("/text_summary") for text in texts)]


def told_mlflow(folder: RunFolder) -> Told:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedsynth").experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.path.name, "FINISHED")
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    files = [entry.path for entry in client.list_artifacts(run.info.run_id) if not entry.is_dir]
    pictures = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    pictures = [f"images {path.split('step+')[1].split('+')[0]}" for path in pictures if path.endswith(".png")]
    return steps, {**run.data.params, **{k: v for k, v in run.data.tags.items() if "." not in k}}, [*pictures, *files]


def told_trackio(folder: RunFolder) -> Told:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("fedsynth")
    assert run.name == folder.path.name
    curves: dict[str, list[int]] = {}
    pictures = []
    for line in SQLiteStorage.get_logs("fedsynth", run.name):
        for name, value in line.items():
            if isinstance(value, dict):
                pictures.append(f"{name} {line['step']}")
            elif name not in ("step", "timestamp"):
                curves.setdefault(name, []).append(line["step"])
    settings = {key: str(value) for key, value in run.config.items() if not key.startswith("_")}
    assert run.config.get("_Username") is None
    return curves, settings, [*pictures, *(entry["name"] for entry in SQLiteStorage.get_artifacts("fedsynth"))]


@pytest.mark.usefixtures("quiet_mlflow")
@pytest.mark.parametrize(
    ("name", "told"), [("tensorboard", told_tensorboard), ("mlflow", told_mlflow), ("trackio", told_trackio)]
)
def test_a_run_that_continues_is_one_run_without_gaps_or_doubles(
    name: str, told: Callable[[RunFolder], Told], tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"no {name}")
    folder = RunFolder(make_run(tmp_path, "run", {"accuracy-cnn": 0.9, "extractor": "x", "worst": None}))
    folder.report.write_text("<p>a report</p>", encoding="utf-8")
    killed = Tracking(folder, name)
    killed.settings({"strategy": "dfd", "num-rounds": 3})  # and, since three rounds are done, those
    killed.round({"round": 4, "loss": 0.2, "attendance": {"silo/../x": {"seconds": 0.5, "loss": 0.1}}})
    del killed
    with tracked(folder, name) as again:
        again.settings({"strategy": "dfd", "num-rounds": 5})
        again.round({"round": 4, "loss": 0.2})  # after the checkpoint of round 3
        again.round({"round": 5, "loss": float("inf"), "bytes-up": 7})
        strategy = SimpleNamespace(num_rounds=12, preview=lambda task, arrays, rows: np.zeros((2, 8, 8, 1), np.uint8))
        for number in (9, 10):
            again.picture(strategy, two_images(), number, {})  # type: ignore[arg-type]
        again.finish({"silo-0": [(10, 0.5), (20, 0.4)]})
    curves, settings, names = told(folder)
    assert curves["round/loss"] == [1, 2, 3, 4]
    assert curves["round/bytes-up"] == [1, 2, 3, 5]
    assert curves["silo/silo_.._x/loss"] == [4]
    assert curves["training/silo-0/loss"] == [10, 20]
    assert "results/accuracy-cnn" in curves
    assert "results/worst" not in curves
    assert settings == {"strategy": "dfd", "num-rounds": "5"}
    assert sorted(names) == ["images 10", "report.html"]


def two_images() -> Any:
    return SimpleNamespace(labels=torch.tensor([0, 1]), spec=SimpleNamespace(classes=("a", "b")))


def test_a_whole_run_is_told_with_pictures_and_without_paths(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    settings = tiny_settings(tmp_path, strategy="fedavg", tracker="tensorboard", num_rounds=10, train_steps=10)
    with mock.patch.object(tracking, "image_grid", return_value=None) as grid, small_picture():
        folder = run_tiny(settings, report=False)
    curves, shown, names = told_tensorboard(folder)
    assert curves["round/seconds"] == list(range(1, 11))
    assert {f"silo/silo-{k}/loss" for k in range(3)} < curves.keys()
    assert shown["num-clients"] == "3"
    assert str(tmp_path) not in str(shown)
    assert names == ["images 10", "report.html"]
    (call,) = grid.call_args_list
    images, labels = call.args[:2]
    assert images.shape == (30, 8, 8, 1)  # three of each of ten classes
    assert labels.tolist() == sorted(labels.tolist())
    assert folder.read_tracker() == {"tracker": "tensorboard", "run-id": "run", "rounds": 10}


def test_the_picture_of_a_cooperative_round_is_the_set_as_it_stands() -> None:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    samples = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    task = SimpleNamespace(config=RunConfig(), spec=ImageSpec(8, 1, ("a", "b")))
    arrays = transport.encode_tensors({"samples": samples})
    shown = DfD().preview(task, arrays, torch.tensor([3, 1]))  # type: ignore[arg-type]
    assert np.array_equal(shown, images[[3, 1]])


def small_picture() -> Any:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG")
    return mock.patch.object(tracking, "png_bytes", return_value=buffer.getvalue())


class Failing:
    run_id = "1"

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            if name != "settings":
                raise ConnectionError("the server is gone\nfor good")

        return fail


def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "open_tracker", lambda *_: Failing())
    folder = RunFolder(make_run(tmp_path, "run", {}))
    with tracked(folder, "mlflow") as failing:
        failing.settings({"strategy": "dfd"})
        failing.round({"round": 4})
        failing.finish({})
    (said,) = caplog.messages
    assert said == "tracker = 'mlflow' has failed: the server is gone; the run goes on, and tells it nothing more"
    assert folder.read_tracker()["rounds"] == 0  # for a run that is resumed


def test_a_tracker_that_lets_no_run_begin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no key\x1b[1m")

    monkeypatch.setattr(tracking, "open_tracker", refuse)
    with pytest.raises(UserError, match=r"tracker = 'wandb' does not let the run begin: no key\\x1b\[1m; mend that"):
        Tracking(RunFolder(tmp_path), "wandb")


def test_without_a_tracker_nothing_is_imported_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedsynth.tracking, "import_module", mock.Mock(side_effect=AssertionError))
    with tracked(RunFolder(tmp_path), "none") as nothing:
        nothing.settings({})
        nothing.round({"round": 1})
        nothing.finish({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["run"], ["sweep", "sweep.toml"]])
def test_a_package_that_is_missing_is_named_before_anything_starts(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fedsynth.tracking.PACKAGES, "wandb", "no_such_package")
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text("seeds = [0]\n")
    assert main([*command, "--tracker", "wandb"]) == 2
    assert "pip install 'fedsynth[wandb]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_weights_and_biases_gets_rounds_and_steps_on_axes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mock.MagicMock(id="abc")
    module = ModuleType("wandb")
    module.__dict__.update(init=mock.Mock(return_value=run), Settings=dict, Image=tuple, Artifact=mock.MagicMock())
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "fedsynth.tracking.wandb_tracker", raising=False)
    tracker = fedsynth.tracking.open_tracker("wandb", tmp_path / "run", "abc")
    tracker.numbers({"round/loss": 0.5}, 3)
    tracker.curve("training/silo-0/loss", [(10, 0.4)])
    tracker.close(False)
    begun = module.init.call_args.kwargs
    assert (begun["id"], begun["resume"], begun["name"], begun["project"]) == ("abc", "allow", "run", "fedsynth")
    assert begun["settings"] == begun["settings"] | {"x_disable_meta": True, "disable_git": True, "save_code": False}
    assert [call.args for call in run.log.call_args_list] == [
        ({"round/loss": 0.5, "round": 3},),
        ({"training/silo-0/loss": 0.4, "training-step": 10},),
    ]
    run.finish.assert_called_once_with(exit_code=1)
