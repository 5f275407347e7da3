from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from class_folders import write_images
from diffusers import UNet2DModel
from spoiled_answers import failed, spoil
from tiny_runs import images_of, run_tiny, tiny_settings
from tiny_silos import diffusers_ddpm
from torchvision.datasets import ImageFolder

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.diffusion import draw_initial_noise
from fedsynth.errors import RunError
from fedsynth.evaluation import Evaluator, ImageSet, Settings
from fedsynth.output import RunFolder, read_dataset
from fedsynth.output.dataset import PROVENANCE
from fedsynth.seeding import make_generator
from strategies.conversation.census import Member
from strategies.own_models.local import draw_labels_of

SILOS, SIZE = 3, 7
NAMES = [f"silo-{k}" for k in range(SILOS)]
Run = tuple[dict[str, Scalar], RunFolder]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of silos with two classes each."""
    settings = tiny_settings(tmp_path_factory.mktemp("local"), strategy="local", partition="pairs", num_samples=SIZE)
    return settings, run_tiny(settings)


def held_by(settings: dict[str, Scalar]) -> list[list[int]]:
    """Classes that every silo trains on."""
    config = RunConfig.from_run_config(settings)
    federation = load_federation(config)
    return [np.flatnonzero(federation.silo(k, config).train.label_counts()).tolist() for k in range(SILOS)]


def set_of(folder: RunFolder, silo: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 1) and labels of one silo's set, in the order of their numbers."""
    dataset = read_dataset(folder.synthetic / silo)
    return dataset.images, np.array([int(dataset.classes[label]) for label in dataset.labels])


def test_every_silo_has_a_whole_set_of_the_classes_it_holds(done: Run) -> None:
    settings, folder = done
    assert sorted(path.name for path in folder.synthetic.iterdir()) == NAMES
    held = held_by(settings)
    assert [len(classes) for classes in held] == [2, 2, 2]
    for name, classes in zip(NAMES, held, strict=True):
        images, labels = set_of(folder, name)
        assert images.shape == (SIZE, 8, 8, 1)
        assert Counter(labels.tolist()) == {classes[0]: 4, classes[1]: 3}
        files = ImageFolder(str(folder.synthetic / name))
        assert files.classes == [str(label) for label in classes]
        assert len(files) == SIZE
        assert "README.md" in {path.name for path in (folder.synthetic / name).iterdir()}


def test_every_set_is_drawn_from_its_silo_s_own_model(done: Run) -> None:
    settings, folder = done
    scheduler = diffusers_ddpm(RunConfig.from_run_config(settings).recipe, 4)
    for k, name in enumerate(NAMES):
        (weights,) = Path(str(settings["state-dir"])).glob(f"{name}/models/*/unet")
        network = UNet2DModel.from_pretrained(weights, low_cpu_mem_usage=False).eval()
        images, labels = set_of(folder, name)
        assert labels.tolist() == [held_by(settings)[k][number % 2] for number in range(SIZE)]
        x, generator = draw_initial_noise(0, SIZE, (1, 8, 8)), make_generator(0, "sampling", name)
        for t in scheduler.timesteps:
            with torch.no_grad():
                predicted = network(x, t, class_labels=torch.from_numpy(labels)).sample
            x = scheduler.step(predicted, t, x, generator=generator).prev_sample
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
        np.testing.assert_allclose(images.astype(float), pixels.numpy(), atol=1)


def test_nothing_is_shared_and_nothing_is_measured_unless_asked(done: Run) -> None:
    _, folder = done
    results = json.loads(folder.results.read_text())
    assert "silos" not in results
    assert results["strategy"] == "local"
    assert results["rounds"] == 1
    # Census, labels and images: no network is as small.
    assert results["bytes-up"] < 15_000
    assert not folder.models.exists()
    assert "local on digits, 3 silos" in folder.report.read_text()


def test_same_seed_gives_the_same_sets_whatever_the_order_of_answers(done: Run) -> None:
    settings, folder = done
    again = run_tiny({**settings, "run-name": "again"}, lambda replies: replies[::-1], report=False)
    for name in NAMES:
        images, labels = set_of(again, name)
        expected, expected_labels = set_of(folder, name)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)
    assert images_of(folder) == {}, "no images outside the silos' folders"


def test_a_silo_that_cannot_draw_ends_the_run(done: Run) -> None:
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1: no power"):
        run_tiny({**done[0], "run-name": "failed"}, spoil("query.sample", failed), report=False)
    assert not (Path(str(done[0]["output-dir"])) / "failed" / "synthetic").exists()


@pytest.mark.parametrize(("kind", "first"), [("query.prepare", 2), ("query.sample", 1)])
def test_a_silo_without_model_or_set_is_left_out_where_fewer_are_enough(kind: str, first: int, done: Run) -> None:
    settings, whole = done
    settings = {**settings, "run-name": f"fewer-{kind}", "min-replies": 2}
    folder = run_tiny(settings, spoil(kind, failed, first), report=False)
    assert sorted(path.name for path in folder.synthetic.iterdir()) == ["silo-0", "silo-2"]
    for name in ("silo-0", "silo-2"):
        np.testing.assert_array_equal(set_of(folder, name)[0], set_of(whole, name)[0])
    assert "without sets of silo-1" in json.loads(folder.results.read_text())["notes"]


def labels_of(counts: list[int], size: int, kind: str, seed: int = 0) -> list[int]:
    config = RunConfig.from_run_config({"num-samples": size, "labels": kind, "seed": seed})
    return draw_labels_of(Member(1, "silo-0", sum(counts), counts), config).bincount(minlength=len(counts)).tolist()


def test_observed_labels_follow_the_silo_s_own_counts() -> None:
    shares = np.array(labels_of([0, 30, 10, 0], 20_000, "observed")) / 20_000
    # Four standard deviations.
    np.testing.assert_allclose(shares, [0, 0.75, 0.25, 0], atol=4 * np.sqrt(0.75 * 0.25 / 20_000))
    assert shares[0] == shares[3] == 0
    assert labels_of([1, 1], 1000, "observed") != labels_of([1, 1], 1000, "observed", seed=1)


def test_results_are_the_mean_of_the_silos_rows_with_their_range(done: Run) -> None:
    quick = {"classifiers": "logistic-regression", "classifier-seeds": 1, "feature-extractor": "pixels"}
    settings = {**done[0], **quick, "run-name": "measured", "evaluate": True, "num-samples": 20}
    folder = run_tiny(settings, report=False)
    results, config = json.loads(folder.results.read_text()), RunConfig.from_run_config(settings)
    federation = load_federation(config)
    silos = [federation.silo(k, config).train for k in range(SILOS)]
    seen = ImageSet("seen", *(np.concatenate([getattr(silo, part) for silo in silos]) for part in ("images", "labels")))
    folds = (federation.train, "real training images"), (federation.test, "real test images")
    named = (ImageSet(name, fold.images, fold.labels) for fold, name in folds)
    how = Settings(feature_extractor="pixels", classifiers=("logistic-regression",), classifier_seeds=1)
    measuring = Evaluator(*named, federation.train.classes, 0, how, trained_on=seen)
    rows = [measuring.evaluate(*set_of(folder, name)).row() for name in NAMES]
    assert results["silos"] == json.loads(json.dumps(dict(zip(NAMES, rows, strict=True))))
    for key in [key for key, value in rows[0].items() if isinstance(value, float)]:
        values = [float(row[key]) for row in rows]
        assert results[key] == pytest.approx(fmean(values)), key
        bounds = [results.get(f"{key}-{end}", values[0]) for end in ("lowest", "highest")]
        assert bounds == pytest.approx([min(values), max(values)]), key
        # The ceiling is the same for all silos.
        assert (f"{key}-lowest" in results) != key.startswith("real-") or min(values) == max(values), key
    said = [note for row in rows for note in str(row["notes"]).split("; ")]
    assert results["notes"].split("; ") == list(dict.fromkeys(said))
    assert results["n"] == results["n-train"] == 20
    assert results["frechet-distance-lowest"] < results["frechet-distance"] < results["frechet-distance-highest"]


def test_natural_silos_are_named_where_somebody_reads_and_numbered_in_files(tmp_path: Path) -> None:
    for silo in ("south", "north"):
        write_images(tmp_path / "images" / silo, {"a": 12, "b": 8})
    given = {"dataset": "imagefolder", "data_root": str(tmp_path / "images"), "partition": "natural", "num_clients": 2}
    folder = run_tiny(tiny_settings(tmp_path, **given, strategy="local", num_samples=SIZE))
    report = folder.report.read_text()
    assert "north" in report
    assert "south" in report
    assert "silo-0" not in report
    for name, silo in (("silo-0", "north"), ("silo-1", "south")):
        assert json.loads((folder.synthetic / name / PROVENANCE).read_text())["provenance"]["silos"] == [silo]
