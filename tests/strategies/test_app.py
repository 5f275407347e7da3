from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from tiny_runs import images_of, run_tiny, tiny_settings

import clients.models.local_model
from fedsynth.config import KEYS, RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.diffusion import ClassConditionalDDPMPipeline, draw_initial_noise, make_scheduler, noise_predictor, sample
from fedsynth.diffusion import to_uint8 as as_images
from fedsynth.errors import UserError
from fedsynth.output import RunFolder, read_dataset
from fedsynth.seeding import make_generator
from strategies.app import _new_run, draw_labels
from strategies.conversation.census import Census, Member

ROUNDS = {"dfd": 4, "fedavg": 2, "pooled": 1, "centralised": 2}
PATHS = [name for name, key in KEYS.items() if key.facts.path]
RESOLVED = {
    "dfd": {"weights": "posterior", "sampler": "ddpm", "prior": "class", "score-scale": 1.0},
    "fedavg": {"sampler": "ddpm", "sample-from": "raw"},
    "pooled": {"prior": "class", "sampler": "ddpm"},
    "centralised": {"sampler": "ddpm", "sample-from": "ema"},
}
Run = tuple[str, dict[str, Scalar], RunFolder]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=ROUNDS)
def done(request: pytest.FixtureRequest, base: Path) -> Run:
    """One finished run of every method, all with the same silos and the same local models."""
    settings = tiny_settings(base, run_name=request.param, strategy=request.param)
    return request.param, settings, run_tiny(settings)


def read(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text()))


def test_dataset_is_complete(done: Run) -> None:
    dataset = read_dataset(done[2].synthetic)
    assert np.bincount(dataset.labels).tolist() == [3] * 10
    assert dataset.images.shape == (30, 8, 8, 1)
    assert dataset.images.std() > 1


def test_rounds_traffic_and_seconds_agree_between_metrics_and_results(done: Run) -> None:
    name, _, folder = done
    rows, results = folder.read_metrics(), read(folder.results)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS[name] + 1))
    assert results["rounds"] == ROUNDS[name]
    assert results["strategy"] == name
    for key in ("bytes-down", "bytes-up"):
        counts = [row[key] for row in rows]
        assert counts == sorted(counts)
        assert counts[-1] == results[key] > 0
    assert all(row["seconds"] > 0 for row in rows)
    assert sum(row["seconds"] for row in rows) < float(str(results["wall-seconds"]))
    assert float(str(results["client-seconds"])) > 0 or name == "centralised"


def test_phases_hold_what_rounds_and_the_whole_run_took(done: Run) -> None:
    _, _, folder = done
    results = read(folder.results)
    seconds: dict[str, float] = dict(results["seconds-by-phase"])
    assert list(seconds) == ["start", "training", "rounds", "sampling", "evaluation"]
    assert seconds["rounds"] >= sum(row["seconds"] for row in folder.read_metrics())
    until_the_dataset = sum(seconds[phase] for phase in ("start", "training", "rounds", "sampling"))
    assert until_the_dataset >= float(str(results["wall-seconds"]))


def test_traffic_is_what_the_method_must_send(done: Run) -> None:
    name, _, folder = done
    rows = folder.read_metrics()
    image = 8 * 8
    if name == "dfd":
        per_round = np.diff([row["bytes-up"] for row in rows])
        # Three silos that hold every class answer for 30 images in float32; the rest is names and metrics.
        assert (per_round >= 3 * 30 * image * 4).all()
        assert (per_round < 1.1 * 3 * 30 * image * 4).all()
    elif name == "fedavg":
        weights = sum(tensor.numel() for tensor in _global_model(folder).unet.state_dict().values())
        ups, downs = (rows[1][key] - rows[0][key] for key in ("bytes-up", "bytes-down"))
        assert 3 * 4 * weights < ups < 1.5 * 3 * 4 * weights
        assert 3 * 4 * weights < downs < 1.5 * 3 * 4 * weights
    elif name == "pooled":
        assert 30 * image < rows[0]["bytes-up"] < 30 * image + 6000
    else:
        assert rows[0]["bytes-up"] == rows[-1]["bytes-up"] < 1000


def test_configuration_is_written_back_resolved(done: Run) -> None:
    name, settings, folder = done
    written = read(folder.config)
    config, resolved = written["config"], written["resolved"]
    assert isinstance(config, dict)
    assert isinstance(resolved, list)
    from_images = written["resolved-from-images"]
    assert isinstance(from_images, list)
    assert {"image-size", "codec", "model"} <= set(from_images)
    assert (config["image-size"], config["block-out-channels"]) == (8, "8,8")
    given = {key: value for key, value in settings.items() if key not in (*resolved, *from_images, *PATHS)}
    assert {key: config[key] for key in given} == given
    assert {key: settings[key] for key in PATHS if settings[key]}.items() <= read(folder.machine)["paths"].items()
    assert not [key for key, value in config.items() if str(value).startswith("/")]
    assert {key: config[key] for key in RESOLVED[name]} == RESOLVED[name]
    assert all(config[key] != "auto" and settings[key] == "auto" for key in (*resolved, *from_images))
    known = {key: value for key, value in settings.items() if key not in resolved}
    assert known.items() <= folder.read_config().to_run_config().items()
    assert RunConfig.from_run_config(config).to_run_config() == config


def test_partition_is_written_as_the_silos_see_it(done: Run) -> None:
    _, settings, folder = done
    written = read(folder.partition)
    config = RunConfig.from_run_config(settings)
    federation = load_federation(config)
    clients_written = written["clients"]
    assert isinstance(clients_written, list)
    assert [client["partition-id"] for client in clients_written] == [0, 1, 2]
    for k, client in enumerate(clients_written):
        assert client["indices"] == federation.parts[k].tolist()
        silo = federation.silo(k, config)
        assert client["label-counts"] == (silo.train.label_counts() + silo.holdout.label_counts()).tolist()
        trained_on = silo.train.label_counts().tolist()
        assert f"silo-{k}: {sum(trained_on)} images to train on, per class {trained_on}" in folder.log.read_text()


def test_report_and_log_tell_of_the_run(done: Run) -> None:
    name, _, folder = done
    report = folder.report.read_text()
    assert f"{name} on digits, 3 silos" in report
    assert report.count("data:image/png") >= 3
    assert list(folder.figures.glob("*.png"))
    log = folder.log.read_text()
    assert f"round {ROUNDS[name]}/{ROUNDS[name]} (100 %)" in log
    assert log.endswith(f"report  {folder.report.name}\n")
    left_over = [path for path in folder.path.rglob("*") if path.name.endswith(".part")]
    assert left_over == []


def _global_model(folder: RunFolder) -> ClassConditionalDDPMPipeline:
    return ClassConditionalDDPMPipeline.from_pretrained(folder.models / "global")


def test_saved_global_model_draws_the_same_images_again(done: Run) -> None:
    name, settings, folder = done
    if name not in ("fedavg", "centralised"):
        assert not folder.models.exists()
        return
    config, labels = RunConfig.from_run_config(settings), torch.arange(30) % 10
    scheduler = make_scheduler(config.recipe, 4)
    predict = noise_predictor(_global_model(folder).unet, config.recipe)
    noise, generator = draw_initial_noise(0, 30, (1, 8, 8)), make_generator(0, "sampling")
    pixels = as_images(sample(predict, scheduler, noise, labels, generator))
    np.testing.assert_array_equal(read_dataset(folder.synthetic).images, pixels)


def disordered() -> Callable[[list[Message]], list[Message]]:
    """No exchange keeps its order: every other one is reversed, those between begin with their second answer."""
    turns = itertools.cycle((lambda replies: replies[::-1], lambda replies: replies[1:] + replies[:1]))
    return lambda replies: next(turns)(replies)


def test_same_bytes_when_everything_is_done_again_and_answered_in_another_order(done: Run, tmp_path: Path) -> None:
    name, _, folder = done
    again = run_tiny(tiny_settings(tmp_path, strategy=name), disordered(), report=False)
    assert images_of(again) == images_of(folder)
    assert len(images_of(again)) == 30


def test_a_second_run_and_a_second_method_reuse_the_local_models(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_tiny(tiny_settings(base, run_name="first"), report=False)
    files = sorted(path for path in (base / "state").rglob("*") if path.is_file())
    stamps = [path.stat().st_mtime_ns for path in files]
    assert len([path for path in files if path.name == "model_index.json"]) == 3

    def no_training(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model that is on disk was trained again")

    monkeypatch.setattr(clients.models.local_model, "train", no_training)
    seconds = []
    for strategy in ("dfd", "pooled"):
        again = run_tiny(tiny_settings(base, run_name=f"again-{strategy}", strategy=strategy), report=False)
        seconds.append(float(str(read(again.results)["client-seconds"])))
    assert sorted(path for path in (base / "state").rglob("*") if path.is_file()) == files
    assert [path.stat().st_mtime_ns for path in files] == stamps
    trained = sum(read(path)["seconds"] for path in files if path.name == "training.json")  # type: ignore[misc]
    assert min(seconds) > trained > 0, "the cost of the reused training is charged"


def labels_of(*counts: list[int], **changes: Scalar) -> torch.Tensor:
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    census = Census(Member(k, f"silo-{k}", sum(row), row) for k, row in enumerate(counts))
    return draw_labels(RunConfig.from_run_config(given), census)


def test_balanced_labels_share_the_images_equally() -> None:
    labels = labels_of([5, 0, 1], [3, 1, 0], num_samples=11)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [4, 4, 3]


def test_observed_labels_follow_the_silos_counts() -> None:
    labels = labels_of([50, 0, 10], [30, 0, 10], num_samples=20000, labels="observed")
    shares = np.bincount(labels, minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.8, 0.0, 0.2], atol=4 * math.sqrt(0.16 / 20000))
    assert shares[1] == 0
    assert not torch.equal(labels, labels_of([80, 0, 20], num_samples=20000, labels="observed", seed=1))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that nobody may write")
def test_a_run_that_was_started_on_another_machine_lies_beside_the_superlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"output-dir": "/sys/kernel/runs", "run-name": "first"}
    folder, config, _ = _new_run(RunConfig.from_run_config({**given, "dataset": "silos"}))
    assert folder.path == tmp_path / "runs" / "first"
    assert config.run.output_dir == str(tmp_path / "runs")
    with pytest.raises(UserError, match="cannot write '/sys/kernel/runs/first'"):
        _new_run(RunConfig.from_run_config(given))
    # A folder that is in the way is no other machine's.
    (folder.path / "results.json").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        _new_run(RunConfig.from_run_config({"output-dir": "runs", "run-name": "first", "dataset": "silos"}))
