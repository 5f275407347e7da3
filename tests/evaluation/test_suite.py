from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsynth.config import RunConfig
from fedsynth.errors import UserError
from fedsynth.evaluation import (
    DEFAULT_CLASSIFIERS,
    Evaluator,
    ImageSet,
    Settings,
    extract_features,
    frechet_distance,
)
from fedsynth.evaluation.image_set import stratified_subset
from fedsynth.evaluation.utility import utility_scores
from fedsynth.seeding import derive_seed

FIDELITY = [
    "frechet-distance", "kernel-distance", "kernel-distance-std", "inception-score", "inception-score-std",
    "precision", "recall", "density", "coverage",
]  # fmt: skip
KINDS = ("accuracy", "macro-precision", "macro-recall", "macro-f1")
SCORES = [f"{kind}-{name}" for kind in KINDS for name in DEFAULT_CLASSIFIERS]
# Logistic regression starts from nothing random.
SCORES += ["accuracy-mlp-interval", "accuracy-cnn-interval"]
COLUMNS = {
    *(
        "n",
        "k",
        "feature-space",
        *FIDELITY,
        *(f"reference-{name}" for name in FIDELITY),
        "n-train",
        "classifier-version",
    ),
    *(prefix + name for prefix in ("", "real-", "joint-") for name in SCORES),
    *("synthetic-count", "train-count", "test-count", "nearest-train-distance", "test-nearest-train-distance"),
    *(
        "copy-distance",
        "nearest-neighbour-ratio",
        "copied-share",
        "authenticity",
        "test-authenticity",
        "memorisation-space",
    ),
    *("released-members", "released-non-members", "released-membership-auc"),
    *("released-membership-tpr-at-1-percent-fpr", "per-class", "real-per-class", "notes"),
}


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def evaluator(digits, cache, seed=0, progress=None, trained_on=None, **settings):
    train = ImageSet("real training images", digits.train_images, digits.train_labels)
    test = ImageSet("real test images", digits.test_images, digits.test_labels)
    quick = {"classifiers": ("logistic-regression",), "classifier_seeds": 1, "cache": cache, **settings}
    return Evaluator(train, test, [f"digit {k}" for k in range(10)], seed, Settings(**quick), trained_on, progress)


@pytest.fixture(scope="module")
def short_training():
    """A fraction of the budgets is enough to tell these sets apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsynth.evaluation.utility.CNN_STEPS", 60)
        patch.setattr("fedsynth.evaluation.utility.MLP_STEPS", 100)
        patch.setattr("fedsynth.evaluation.suite.EMBEDDED", 100)
        yield


@pytest.fixture(scope="module")
def on_noisy_digits(digits, cache, classifier, short_training):
    """A stand-in for a synthetic set: 500 noisy training digits, measured without a warning."""
    phases: list[str] = []
    all_of_them = {"classifiers": DEFAULT_CLASSIFIERS, "classifier_seeds": 2}
    measuring = evaluator(digits, cache, progress=phases.append, **all_of_them)
    images = noisy(digits.train_images[:500], 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measuring.evaluate(images, digits.train_labels[:500], illustrated=True), phases


def test_a_row_holds_every_column_as_finite_json(on_noisy_digits):
    row = on_noisy_digits[0].row()
    assert row.keys() == COLUMNS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["n"], row["n-train"], row["k"], row["feature-space"]) == (360, 500, 5, "domain-classifier")


def test_each_phase_is_announced(on_noisy_digits):
    assert on_noisy_digits[1] == [
        "training the feature classifier on the real train fold",
        "measuring fidelity against the real test fold in domain-classifier",
        "training classifiers on 500 real images",
        "training classifiers on 500 synthetic images",
        "training classifiers on 500 real and 500 synthetic images",
        "looking for copies of training images",
        "laying out the images for the report",
    ]


def test_what_concerns_real_images_alone_is_done_once(digits, cache):
    phases: list[str] = []
    measuring = evaluator(digits, cache, progress=phases.append)
    first = measuring.evaluate(digits.train_images[:100], digits.train_labels[:100])
    before = len(phases)
    again = measuring.evaluate(digits.train_images[:100], digits.train_labels[:100])
    assert again.row() == first.row()
    assert not [phase for phase in phases[before:] if "feature classifier" in phase or phase.endswith("real images")]


def test_the_scores_on_real_images_are_kept_from_run_to_run(digits, cache, monkeypatch):
    fakes = digits.train_images[:80], digits.train_labels[:80]
    first = evaluator(digits, cache).evaluate(*fakes)
    sizes = []

    def scores(*arguments):
        sizes.append(len(arguments[0]))
        return utility_scores(*arguments)

    monkeypatch.setattr("fedsynth.evaluation.cache.utility_scores", scores)
    assert evaluator(digits, cache).evaluate(*fakes).row() == first.row()
    # Only the synthetic set, and both together.
    assert sizes == [80, 160]


def test_fidelity_is_measured_against_the_test_fold_at_equal_n(digits, cache, classifier, on_noisy_digits):
    images, labels = noisy(digits.train_images[:500], 40), digits.train_labels[:500]
    evaluation = evaluator(digits, cache).evaluate(images[:360], labels[:360])
    expected = frechet_distance(
        extract_features(classifier, digits.test_images), extract_features(classifier, images[:360])
    )
    # The shared classifier was trained with the suite's own seed.
    assert evaluation.row()["frechet-distance"] == pytest.approx(expected, rel=1e-4)
    # The train subset is the same draw.
    reference = on_noisy_digits[0].row()["reference-frechet-distance"]
    assert evaluation.row()["reference-frechet-distance"] == pytest.approx(reference, rel=1e-9)


def test_the_feature_space_is_a_setting(digits, cache):
    row = (
        evaluator(digits, cache, feature_extractor="pixels")
        .evaluate(digits.train_images[:90], digits.train_labels[:90])
        .row()
    )
    rng = np.random.default_rng(derive_seed(0, "evaluation-subset", "real test images"))
    test = digits.test_images[stratified_subset(digits.test_labels, 90, rng)]
    flat = [
        images.reshape(90, -1).astype(np.float32) / np.float32(127.5) - 1 for images in (test, digits.train_images[:90])
    ]
    assert row["feature-space"] == "pixels"
    assert row["frechet-distance"] == pytest.approx(frechet_distance(*flat), rel=1e-6)
    assert "inception-score" not in row


def test_noisy_digits_lie_behind_real_ones(on_noisy_digits):
    row = on_noisy_digits[0].row()
    assert row["frechet-distance"] > row["reference-frechet-distance"]
    assert row["real-accuracy-cnn"] > 0.9
    assert 0.8 < row["accuracy-cnn"] <= row["real-accuracy-cnn"]
    assert row["joint-accuracy-cnn"] >= row["accuracy-cnn"] - 0.01


def test_measures_of_each_class(digits, on_noisy_digits):
    per_class = on_noisy_digits[0].row()["per-class"]
    assert set(per_class["coverage"]) == {f"digit {k}" for k in range(10)}
    counts = np.bincount(digits.test_labels)
    weighted = sum(per_class["accuracy-cnn"][f"digit {k}"] * counts[k] for k in range(10)) / 360
    assert weighted == pytest.approx(on_noisy_digits[0].row()["accuracy-cnn"], rel=1e-9)
    real = on_noisy_digits[0].row()["real-per-class"]
    assert np.mean([*real["f1-cnn"].values()]) == pytest.approx(on_noisy_digits[0].row()["real-macro-f1-cnn"], rel=1e-9)


def test_test_images_that_are_training_images_are_told(digits, cache):
    leaked = replace(digits, test_images=np.concatenate([digits.train_images[:7], digits.test_images[7:]]))
    row = evaluator(leaked, cache).evaluate(digits.train_images[:20], digits.train_labels[:20]).row()
    assert f"7 of {len(digits.test_images)} real test images are real training images too" in row["notes"]


def test_pictures_show_what_was_measured(digits, on_noisy_digits):
    illustration = on_noisy_digits[0].illustration
    assert illustration.embedding.synthetic.sum() == (~illustration.embedding.synthetic).sum() == 100
    known = {image.tobytes() for image in digits.train_images}
    assert all(image.tobytes() in known for image in illustration.triples.real)
    assert (illustration.triples.distances > 0).all()


def test_a_tiny_set_is_measured_reproducibly_and_says_so(digits, cache):
    sets = digits.train_images[:20], digits.train_labels[:20] % 5
    row = evaluator(digits, cache).evaluate(*sets).row()
    assert (row["n"], row["n-train"], row["k"]) == (20, 20, 5)
    assert "n = 20 is below 2048" in row["notes"]
    assert "n = 20 is few for neighbourhoods of k = 5" in row["notes"]
    assert "inception-score-std" not in row  # of a single part
    assert "no synthetic images of class digit 5, digit 6, digit 7, digit 8, digit 9" in row["notes"]
    assert "no fidelity of class digit 0" in row["notes"]
    assert evaluator(digits, cache).evaluate(*sets).row() == row
    three = evaluator(digits, cache).evaluate(digits.train_images[:3], np.array([1, 1, 1])).row()
    assert (three["n"], three["k"]) == (3, 2)
    assert "k = 2 neighbours instead of 5" in three["notes"]
    assert json.dumps(three, allow_nan=False)
    assert "real training images too" not in three["notes"]
    assert evaluator(digits, cache, seed=1).evaluate(*sets).row() != row


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, int), "synthetic images: 1 image, at least 2"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int), r"\(8, 8, 3\), the real training images are \(8, 8, 1\)"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.full(4, 12), "synthetic images: labels run from 12 to 12"),
    ],
)
def test_unusable_synthetic_sets_are_refused(digits, cache, images, labels, message):
    with pytest.raises(UserError, match=message):
        evaluator(digits, cache).evaluate(images, labels)


def test_images_seen_in_training_are_checked_before_any_work(digits, cache):
    with pytest.raises(UserError, match=r"seen: images are \(16, 16, 1\)"):
        evaluator(digits, cache, trained_on=ImageSet("seen", np.zeros((4, 16, 16, 1), np.uint8), np.zeros(4, int)))


def test_constant_synthetic_images_are_measured_and_reach_nothing(digits, cache):
    row = evaluator(digits, cache).evaluate(np.full((100, 8, 8, 1), 9, np.uint8), np.arange(100) % 10).row()
    assert row["coverage"] < 0.05
    assert row["recall"] < 0.05
    assert row["accuracy-logistic-regression"] < 0.2
    assert json.dumps(row, allow_nan=False)


def test_the_attack_on_a_set_of_strangers_is_guessing(digits, cache):
    seen, strangers = slice(0, 700), slice(700, 1400)
    trained_on = ImageSet("seen", digits.train_images[seen], digits.train_labels[seen])
    measuring = evaluator(digits, cache, trained_on=trained_on)
    row = measuring.evaluate(digits.train_images[strangers], digits.train_labels[strangers]).row()
    # Standard error of the area with 360 images on each side: .022.
    assert row["released-membership-auc"] == pytest.approx(0.5, abs=0.07)
    assert row["copied-share"] == pytest.approx(0.05, abs=0.04)


def test_copies_that_cannot_be_judged_are_a_note(digits, cache):
    fold = ImageSet("fold", digits.train_images[:40], digits.train_labels[:40])
    settings = Settings(classifiers=("logistic-regression",), feature_extractor="pixels")
    evaluation = Evaluator(fold, fold, "0123456789", 0, settings).evaluate(fold.images, fold.labels)
    assert evaluation.memorisation is None
    assert any(note.startswith("no copy check: test: more than half") for note in evaluation.notes)


def test_settings_follow_the_configuration():
    given = {"feature-extractor": "pixels", "classifiers": "mlp, resnet", "classifier-seeds": 2, "state-dir": "here"}
    paths = {"feature-extractor-weights-path": "a.pth", "resnet-weights-path": "~/b.pth", "device": "cpu"}
    settings = Settings.of(RunConfig.from_run_config({**given, **paths}))
    weights = Path("a.pth"), Path("~/b.pth").expanduser()
    assert settings == Settings("pixels", weights[0], ("mlp", "resnet"), 2, weights[1], Path("here/evaluation"), "cpu")
    assert Settings.of(RunConfig()).classifiers == DEFAULT_CLASSIFIERS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"feature_extractor": "auto"}, "feature-extractor = inception-v3-compat: its weights cannot be read from"),
        ({"feature_extractor": "pixels", "classifiers": ("resnet",)}, "resnet-weights-path"),
    ],
)
def test_missing_weights_are_noticed_before_any_work(settings, said, tmp_path):
    missing = {"feature_extractor_weights_path": tmp_path / "none.pth", "resnet_weights_path": tmp_path / "none.pth"}
    with pytest.raises(UserError, match=said):
        Settings(**{**missing, **settings}).check((8, 8, 1))
