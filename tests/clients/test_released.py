from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.noisy_moments import SENSITIVITY, gaussian_scale
from clients.privacy_account import PrivacyAccount
from clients.released import ImageFiles, ReleasedAnswers, secret_generator
from fedsynth.data import split_holdout
from fedsynth.data.labelled_images import LabelledImages
from fedsynth.errors import UserError
from fedsynth.evaluation.feature_statistics import FeatureStatistics
from fedsynth.evaluation.silo_measures import HeldOutMeasures
from fedsynth.policy import PolicyError, SiloPolicy
from fedsynth.privacy.accounting import Geometric, Mechanism
from fedsynth.privacy.spending import Spending, read_account
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("a", "b", "c"))


def files(folder: Path, a: int = 40, b: int = 30, size: int = 10) -> ImageFiles:
    """Files of a silo; of contents that nobody reads."""
    found: dict[str, list[Path]] = {}
    for name, count in (("a", a), ("b", b)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        found[name] = [folder / name / f"{number}.png" for number in range(count)]
        for path in found[name]:
            path.write_bytes(b"x" * size)
    return ImageFiles(folder, found)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def released(data: ImageFiles, state: Path, policy: SiloPolicy) -> ReleasedAnswers:
    return ReleasedAnswers(data, state, policy, PrivacyAccount(state, policy, "1"))


def answers(images: Path, tmp_path: Path, policy: SiloPolicy | None = None, **changes: Any) -> ReleasedAnswers:
    return released(files(images, **changes), tmp_path / "state", policy or SiloPolicy(count_noise=5.0))


def moments(offset: float = 0.0) -> FeatureStatistics:
    return FeatureStatistics.of(np.random.default_rng(0).normal(size=(70, 4)) * 0.1 + offset)


def test_counts_are_drawn_once_whatever_is_asked(images: Path, tmp_path: Path) -> None:
    first = answers(images, tmp_path).training_counts(SPEC.classes, 0.0)
    assert first[2] == 0
    for classes, fraction, scale in ((("a", "b"), 0.0, 5.000001), (("b", "a"), 0.3, 0.1), (("b", "a", "d"), 0.31, 0.0)):
        again = answers(images, tmp_path, SiloPolicy(count_noise=scale)).training_counts(classes, fraction)
        told = [dict(zip(SPEC.classes, first, strict=True)).get(name, 0) for name in classes]
        assert again.sum() == sum(told) - np.ceil(fraction * sum(told) - 1e-9)


def test_nobody_draws_the_noise_again() -> None:
    drawn = set()
    for _ in range(3):
        np.random.seed(0)
        drawn.add(secret_generator().integers(2**62))
    assert len(drawn) == 3


def test_noise_cannot_be_foreseen_and_has_its_scale(images: Path, tmp_path: Path) -> None:
    data, policy = files(images), SiloPolicy(count_noise=2.0)
    drawn = [released(data, tmp_path / str(k), policy).training_counts(SPEC.classes, 0.0)[0] for k in range(400)]
    assert np.mean(drawn) == pytest.approx(40, abs=1)
    assert np.std(drawn) == pytest.approx(2 * np.sqrt(2), rel=0.35)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_without_noise_counts_are_those_that_the_split_leaves(images: Path, tmp_path: Path, fraction: float) -> None:
    labels = np.repeat([0, 1], [40, 30])
    data = LabelledImages(np.zeros((70, 2, 2, 1), np.uint8), labels, SPEC.classes)
    train, _ = split_holdout(data, fraction, seed=3)
    told = answers(images, tmp_path, SiloPolicy(count_noise=0)).training_counts(SPEC.classes, fraction)
    assert told.tolist() == train.label_counts().tolist()


def test_a_data_set_is_its_files_names_and_sizes(tmp_path: Path) -> None:
    key = files(tmp_path / "one").key
    assert files(tmp_path / "one").key == files(tmp_path / "moved").key == key
    assert files(tmp_path / "larger", size=11).key != key
    assert files(tmp_path / "fewer", a=39).key != key
    (tmp_path / "one" / "notes.txt").write_text("no image")
    assert files(tmp_path / "one").key == key


def test_a_silo_tells_of_so_many_data_sets(images: Path, tmp_path: Path) -> None:
    policy = SiloPolicy(count_noise_draws=2)
    for a in (40, 41, 40):
        answers(images, tmp_path, policy, a=a).training_counts(SPEC.classes, 0.0)
    third = answers(images, tmp_path, policy, a=42)
    with pytest.raises(PolicyError, match="line 'count-noise-draws = 2': answers about 2 other states of the images"):
        third.training_counts(SPEC.classes, 0.0)
    for ask in (lambda: third.moments("m", SPEC, moments), lambda: third.held_out(1, "q", lambda: CELLS)):
        with pytest.raises(PolicyError, match="count-noise-draws"):
            ask()
    answers(images, tmp_path, policy, a=41).training_counts(SPEC.classes, 0.0)


def test_moments_are_told_once_in_one_size(images: Path, tmp_path: Path) -> None:
    silo = answers(images, tmp_path, SiloPolicy(count_noise=0))
    first = silo.moments("random-features", SPEC, moments)
    assert first.n == 70
    again = silo.moments("random-features", SPEC, lambda: moments(0.1))
    assert (again.mean == first.mean).all()
    assert (first.products == moments().products).all()
    with pytest.raises(UserError, match=r"told with 8 pixels and 1 channel\(s\), and are told once: give image-size"):
        silo.moments("random-features", ImageSpec(1, 9, SPEC.classes), lambda: moments(0.1))


def test_exact_moments_of_two_data_sets_differ_by_many_images(images: Path, tmp_path: Path) -> None:
    policy = SiloPolicy(count_noise=0, least_images=20)
    answers(images, tmp_path, policy).moments("m", SPEC, moments)
    near = answers(images, tmp_path, policy, a=59)
    with pytest.raises(PolicyError, match="'least-images = 20': the images differ in fewer from those of an earlier"):
        near.moments("m", SPEC, moments)
    noisy = answers(images, tmp_path, SiloPolicy(least_images=20, statistics_epsilon=1.0), a=59)
    assert noisy.moments("m", SPEC, moments).noise > 0
    answers(images, tmp_path, policy, a=60).moments("m", SPEC, moments)


def test_nobody_is_asked_about_few_images(images: Path, tmp_path: Path) -> None:
    few = answers(images, tmp_path, SiloPolicy(least_images=71))
    for ask in (lambda: few.moments("m", SPEC, moments), lambda: few.held_out(1, "q", lambda: CELLS)):
        with pytest.raises(PolicyError, match="'least-images = 71': there are fewer images here"):
            ask()


CELLS = HeldOutMeasures(10, 20, 30, 40)


def test_a_run_gets_one_answer_about_held_out_images(images: Path, tmp_path: Path) -> None:
    silo = answers(images, tmp_path)
    first = silo.held_out(1, "one", lambda: CELLS)
    assert silo.held_out(1, "one", lambda: CELLS) == silo.held_out(2, "one", lambda: CELLS) == first
    with pytest.raises(UserError, match="one answer about held-out images: start another run"):
        silo.held_out(1, "other", lambda: CELLS)
    others = [silo.held_out(run, f"question {run}", lambda: CELLS) for run in range(10, 60)]
    assert len(set(others)) > 10
    assert np.mean([other.right_outside for other in others]) == pytest.approx(20, abs=2)
    # Two-sided geometric noise of scale 2 on every cell.
    noise = np.array([[*vars(other).values()] for other in others]) - [10, 20, 30, 40]
    assert noise.std() == pytest.approx(2 * np.sqrt(2), rel=0.5)


def test_no_noise_where_the_policy_asks_for_none(images: Path, tmp_path: Path) -> None:
    silo = answers(images, tmp_path, SiloPolicy(evaluation_epsilon="unlimited"))
    assert silo.held_out(1, "one", lambda: CELLS) == CELLS


def spendings(tmp_path: Path) -> list[Spending]:
    with (tmp_path / "state" / "privacy.jsonl").open("rb") as file:
        return read_account(file).spendings


def test_what_is_drawn_is_accounted_for_once_a_data_set(images: Path, tmp_path: Path) -> None:
    policy = SiloPolicy(count_noise=2.0, statistics_epsilon=1.0, privacy_epsilon=4.0, least_images=20)
    for a in (40, 40, 41):
        silo = answers(images, tmp_path, policy, a=a)
        silo.training_counts(SPEC.classes, 0.1)
        silo.rare(SPEC.classes)
    for _ in range(2):
        silo.moments("m", SPEC, moments)
        silo.held_out(1, "one", lambda: CELLS)
    found = spendings(tmp_path)
    assert [(one.what, one.mechanism) for one in found if one.what != "statistics"] == [
        ("counts", Geometric(2.0)),
        ("counts", Geometric(2.0)),
        ("evaluation", Geometric(2.0)),
    ]
    assert {one.data for one in found} == {files(images, a=40).key, files(images, a=41).key}
    (statistics,) = [one.mechanism for one in found if one.what == "statistics"]
    assert isinstance(statistics, Mechanism)
    assert statistics.noise_multiplier == pytest.approx(gaussian_scale(1.0, 1e-5, SENSITIVITY) / SENSITIVITY)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ({"count_noise": 0.0}, "counts without noise"),
        ({"count_noise": 0.1}, "counts would bring ε to 10"),
        ({"statistics_epsilon": 0.0}, "statistics without noise"),
        ({"evaluation_epsilon": "unlimited"}, "evaluation without noise"),
    ],
)
def test_a_budget_refuses_before_the_images_are_looked_at(
    lines: dict[str, Any], what: str, images: Path, tmp_path: Path
) -> None:
    lines = {"count_noise": 2.0, "statistics_epsilon": 1.0, "least_images": 20, **lines}
    silo = answers(images, tmp_path, SiloPolicy(privacy_epsilon=4.0, **lines))

    def look() -> Any:
        pytest.fail("the images were looked at")

    asked: dict[str, Callable[[], Any]] = {
        "counts": lambda: silo.training_counts(SPEC.classes, 0.0),
        "statistics": lambda: silo.moments("m", SPEC, look),
        "evaluation": lambda: silo.held_out(1, "one", look),
    }
    with pytest.raises(PolicyError, match=f"line 'privacy-epsilon = 4.0': {what}"):
        asked[what.split()[0]]()


def test_without_a_budget_evaluation_has_no_bound_as_to_one_image_more(images: Path, tmp_path: Path) -> None:
    answers(images, tmp_path).held_out(1, "one", lambda: CELLS)
    assert [(one.what, one.mechanism) for one in spendings(tmp_path)] == [("evaluation", None)]


def test_with_a_budget_no_refusal_tells_the_exact_number_of_images(images: Path, tmp_path: Path) -> None:
    refused = 0
    for k in range(40):
        policy = SiloPolicy(count_noise=2.0, privacy_epsilon=9.0, least_images=70)
        silo = released(files(images), tmp_path / str(k), policy)
        try:
            silo.held_out(1, "one", lambda: CELLS)
        except PolicyError as error:
            refused += "there are fewer images here" in str(error)
    assert 5 < refused < 35


def damage() -> Iterator[str]:
    yield ""
    yield "{"
    yield "[]"
    yield json.dumps({"format": 1})
    yield json.dumps({"format": 1, "counts": 3, "answers": 3, "mean": "x", "products": [], "files": 3, "noise": None})


@pytest.mark.parametrize("text", damage())
def test_what_is_damaged_is_named_and_not_drawn_anew(text: str, images: Path, tmp_path: Path) -> None:
    silo = answers(images, tmp_path)
    questions = {
        "counts": lambda: silo.training_counts(SPEC.classes, 0.0),
        "moments-m": lambda: silo.moments("m", SPEC, moments),
        "held-out": lambda: silo.held_out(1, "one", lambda: CELLS),
    }
    for ask in questions.values():
        ask()
    for name, ask in questions.items():
        (path,) = (tmp_path / "state").rglob(f"{name}.json")
        whole = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError, match=rf"{name}\.json' is damaged .*: put back a copy"):
            ask()
        assert path.read_text() == text
        path.write_text(whole.replace('"format": 1', '"format": 2'))
        with pytest.raises(UserError, match="another version of fedsynth"):
            ask()
        path.write_text(whole)
