"""What one silo answers where labels are few, and what a real one refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from one_silo import Node, policy_file, sample_request, settings_of, simulated
from real_silos import write_few_labels
from safetensors.torch import load_file

from fedsynth.data import load_federation
from fedsynth.diffusion import initial_unet
from fedsynth.evaluation.networks.domain_classifier import initial_classifier
from fedsynth.messages import (
    ConfusionRequest,
    PrepareRequest,
    SelectRequest,
    SynthesiseRequest,
    TrainRequest,
    transport,
)
from fedsynth.policy import SiloPolicy
from fedsynth.spec import ImageSpec

DIGITS = ImageSpec(1, 8, tuple("0123456789"))
FEW: dict[str, Any] = {"strategy": "ddsa", "labelled_fraction": 0.5, "classifier_steps": 20}


def classifier(spec: ImageSpec) -> Any:
    return transport.encode_tensors(initial_classifier(spec.channels, spec.size, len(spec.classes), 0).state_dict())


def train_request(spec: ImageSpec, images: str, **changes: Any) -> TrainRequest:
    given = {"arrays": classifier(spec), "spec": spec, "server_round": 1, "steps": 1, "run_token": "run-1"}
    return TrainRequest(**{**given, "model": "classifier", "images": images, **changes})


def test_a_silo_counts_keeps_draws_and_trains_on_what_it_kept(tmp_path: Path) -> None:
    node = simulated(tmp_path, **FEW)
    spec, weights = node.spec, classifier(node.spec)
    federation = load_federation(node.config)
    assert federation.labelled is not None
    own = federation.silo(1, node.config)
    assert own.unlabelled is not None
    counted = node.ask(ConfusionRequest(weights=weights, bins=5, spec=spec))
    told = {name: node.ask(train_request(spec, name)).num_examples for name in ("first", "labelled", "fixmatch", "all")}
    assert told["labelled"] == told["fixmatch"] == len(own.train)
    assert told["first"] + int(counted.matrix.sum()) == len(own.train)
    assert told["all"] == len(own.train) + len(own.unlabelled)
    # Before a silo has chosen or drawn, it has nothing to train on.
    for name in ("pseudo labels", "synthesised images"):
        asked = train_request(spec, "pseudo" if name.startswith("pseudo") else "synthetic")
        assert f"the {name} that this silo kept in this run cannot be read" in node.refusal(asked)
    select = SelectRequest(weights=weights, thresholds=torch.zeros(10).double(), spec=spec, run_token="run-1")
    chosen = node.ask(select)
    assert chosen.kept == chosen.predicted
    assert sum(chosen.kept) == len(own.unlabelled)
    kept = load_file(tmp_path / "state" / "silo-1" / "few-labels" / "run-1" / "pseudo-labels.safetensors")
    right = kept["labels"].numpy() == own.unlabelled.labels[kept["rows"].numpy()]
    assert chosen.correct is not None
    assert sum(chosen.correct) == right.sum()
    unet = transport.encode_tensors(initial_unet(node.config, spec).state_dict())
    quota = (0, 2, 0, 0, 0, 3, 0, 0, 0, 0)
    synthesise = SynthesiseRequest(weights=unet, quota=quota, sampler="ddpm", spec=spec, run_token="run-1")
    assert node.ask(synthesise).made == quota
    drawn = load_file(tmp_path / "state" / "silo-1" / "few-labels" / "run-1" / "synthesised-images.safetensors")
    assert drawn["images"].shape == (5, 8, 8, 1)
    assert drawn["labels"].tolist() == [1, 1, 5, 5, 5]
    assert node.ask(train_request(spec, "pseudo")).num_examples == len(own.train) + len(own.unlabelled)
    assert node.ask(train_request(spec, "synthetic")).num_examples == len(own.train) + 5
    # A diffusion model is trained on what a classifier is; another run has kept nothing.
    assert node.ask(train_request(spec, "pseudo", arrays=unet, model="diffusion")).num_examples == told["all"]
    assert "cannot be read" in node.again().refusal(train_request(spec, "pseudo", run_token="run-2"))
    shutil.rmtree(tmp_path / "state")
    assert "give it the state folder" in node.refusal(train_request(spec, "synthetic"))


def test_noise_is_in_every_cell_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    exact, noisy, again = (
        simulated(tmp_path, **FEW, **noise).ask(ConfusionRequest(weights=classifier(DIGITS), bins=20, spec=DIGITS))
        for noise in (dict[str, float](), {"confusion_noise": 3.0}, {"confusion_noise": 3.0})
    )
    moved = (noisy.matrix - exact.matrix).double()
    assert (moved != 0).double().mean() > 0.5
    # Two-sided geometric noise of scale 3: a standard deviation of √(2 q) / (1 - q) = 4.2, q = exp(-1/3).
    assert moved.std() == pytest.approx(4.22, rel=0.15)
    assert torch.equal(noisy.matrix, again.matrix)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    node = simulated(tmp_path, **FEW)
    other = classifier(ImageSpec(1, 8, ("a", "b")))
    assert "weights do not fit the classifier" in node.refusal(train_request(node.spec, "labelled", arrays=other))


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A real silo's folder: two classes of twenty images, and thirty without labels."""
    return write_few_labels(tmp_path / "images", (0, 1), 20, 30)


SPEC = ImageSpec(1, 8, ("0", "1"))


def real(folder: Path, images: Path, **policy: Any) -> Node:
    """A real silo that allows everything but for the changes, fields of its policy."""
    settings = settings_of(folder, strategy="ddsa", holdout_fraction=0.0, classifier_steps=20)
    return Node(settings, SPEC, data_path=str(images), policy_path=policy_file(folder, **policy))


def requests_of(spec: ImageSpec) -> dict[str, Any]:
    weights, thresholds = classifier(spec), torch.zeros(len(spec.classes)).double()
    return {
        "confusion": ConfusionRequest(weights=weights, bins=5, spec=spec),
        "select": SelectRequest(weights=weights, thresholds=thresholds, spec=spec, run_token="run-1"),
        "synthesise": SynthesiseRequest(weights=weights, quota=(1, 1), sampler="ddpm", spec=spec, run_token="run-1"),
        "train": train_request(spec, "labelled"),
    }


@pytest.mark.parametrize("kind", ["confusion", "select", "synthesise", "train"])
def test_a_silo_that_was_not_told_otherwise_answers_none_of_it(kind: str, tmp_path: Path, few: Path) -> None:
    refused = real(tmp_path, few, answers=SiloPolicy().answers).refusal(requests_of(SPEC)[kind])
    assert f"'{kind}' is not answered here" in refused


def test_a_real_silo_tells_counts_with_its_noise_once_and_which_images_were_chosen_to_nobody(
    tmp_path: Path, few: Path
) -> None:
    exact = real(tmp_path / "exact", few)
    asked = requests_of(SPEC)
    told = exact.ask(train_request(SPEC, "labelled")).num_examples
    matrix, chosen = exact.ask(asked["confusion"]).matrix, exact.ask(asked["select"])
    assert (told, sum(chosen.predicted), chosen.kept, chosen.correct) == (40, 30, chosen.predicted, None)
    assert 0 < int(matrix.sum()) < 20
    kept = load_file(tmp_path / "exact" / "state" / "images" / "few-labels" / "run-1" / "pseudo-labels.safetensors")
    assert len(kept["rows"]) == 30
    for name, expected in (("pseudo", 70), ("first", 32), ("fixmatch", 40)):
        assert exact.ask(train_request(SPEC, name)).num_examples == expected
    assert "nobody knows the labels of unlabelled images" in exact.refusal(train_request(SPEC, "all"))
    noisy = real(tmp_path / "noisy", few, count_noise=3.0)
    first = noisy.ask(asked["confusion"]).matrix
    assert (first != matrix).sum() > 5
    # The same question gets the same answer, whoever asks; another one of this run gets none.
    assert torch.equal(first, noisy.again().ask(asked["confusion"]).matrix)
    other = ConfusionRequest(weights=classifier(SPEC), bins=4, spec=SPEC)
    assert "this run has got its one answer to 'confusion'" in noisy.refusal(other)


def test_questions_to_a_classifier_have_a_ceiling_and_drawn_images_too(tmp_path: Path, few: Path) -> None:
    node, asked = real(tmp_path, few, classifier_questions_in_all=1, images_drawn_per_run=1), requests_of(SPEC)
    node.ask(asked["confusion"])
    assert "line 'classifier-questions-in-all = 1'" in node.refusal(asked["select"])
    assert "line 'images-drawn-per-run = 1'" in node.refusal(asked["synthesise"])


def test_no_classifier_is_trained_on_few_images_by_the_numbers_that_are_told(tmp_path: Path, few: Path) -> None:
    node = real(tmp_path, few, least_training_images=40)
    node.ask(train_request(SPEC, "labelled", steps=4))
    assert "line 'least-training-images = 40'" in node.refusal(train_request(SPEC, "first", steps=4))
    other = Node(settings_of(tmp_path, strategy="fedavg"), SPEC, data_path=str(few), policy_path=policy_file(tmp_path))
    assert "strategy = 'fedavg' has no silo classify its images" in other.refusal(train_request(SPEC, "labelled"))


def test_one_labelled_image_more_or_less_changes_one_cell_of_a_real_silos_matrix(tmp_path: Path, few: Path) -> None:
    asked = requests_of(SPEC)["confusion"]
    whole = real(tmp_path / "whole", few).ask(asked).matrix
    changes = []
    for number, path in enumerate(sorted((few / "0").iterdir())[:8]):
        moved = path.rename(few.parent / path.name)
        changes.append(int((whole - real(tmp_path / str(number), few).ask(asked).matrix).abs().sum()))
        moved.rename(path)
    assert {*changes} == {0, 1}


SPECS = ImageSpec(1, 8, ("0", "1", "2"))


def with_own_model(folder: Path, images: Path, quota: str = "missing", **policy: Any) -> Node:
    """A real silo of a run whose silos keep their models; it allows everything but for the changes."""
    settings = settings_of(
        folder, strategy="ddsa", diffusion_strategy="pooled", synthetic_quota=quota, holdout_fraction=0.0
    )
    return Node(settings, SPECS, data_path=str(images), policy_path=policy_file(folder, **policy))


def given(*quota: int) -> SynthesiseRequest:
    images = torch.arange(sum(quota) * 64, dtype=torch.uint8).view(-1, 8, 8, 1)
    return SynthesiseRequest(images=images, quota=quota, sampler="ddpm", spec=SPECS, run_token="run-1")


def test_a_silo_keeps_what_others_drew_for_it_if_it_lacks_that(tmp_path: Path, few: Path) -> None:
    node = with_own_model(tmp_path, few, images_drawn_per_run=5)
    assert node.ask(given(0, 0, 3)).made == (0, 0, 3)
    path = tmp_path / "state" / "images" / "few-labels" / "run-1" / "synthesised-images.safetensors"
    assert torch.equal(load_file(path)["images"], given(0, 0, 3).images)
    assert load_file(path)["labels"].tolist() == [2, 2, 2]
    own = train_request(SPECS, "synthetic")
    assert node.ask(own).num_examples == 43
    assert "images of class '1', of which this silo has labels" in node.refusal(given(0, 1, 1))
    assert "line 'images-drawn-per-run = 5'" in node.refusal(given(0, 0, 3))
    # What fills gaps may be of any class.
    assert with_own_model(tmp_path / "gap", few, quota="gap").ask(given(0, 1, 1)).made == (0, 1, 1)
    averaged = real(tmp_path / "other", few)
    spoiled = SynthesiseRequest(images=given(0, 1, 0).images, quota=(0, 1), sampler="ddpm", spec=SPEC, run_token="r")
    assert "only with diffusion-strategy = 'dfd' or 'pooled'" in averaged.refusal(spoiled)
    drawn_here = SynthesiseRequest(
        weights=classifier(SPECS), quota=(0, 0, 1), sampler="ddpm", spec=SPECS, run_token="run-1"
    )
    assert "there is no federated model to draw from" in with_own_model(tmp_path / "own", few).refusal(drawn_here)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"images": torch.zeros((2, 8, 8, 1), dtype=torch.uint8)}, "images have shape (2, 8, 8, 1), not (1, 8, 8, 1)"),
        ({"images": torch.zeros((1, 8, 8, 3), dtype=torch.uint8)}, "images have shape (1, 8, 8, 3), not (1, 8, 8, 1)"),
        ({"images": torch.zeros((1, 8, 8, 1))}, "images is float32: must be uint8"),
        ({"images": None}, "weights or images: one of the two must be there"),
        ({"weights": classifier(SPEC)}, "weights or images: one of the two must be there"),
        ({"quota": (0, 0, 0, 1)}, "4 numbers with 3 classes"),
    ],
)
def test_images_that_are_not_what_they_say_are_refused(
    changes: dict[str, Any], why: str, tmp_path: Path, few: Path
) -> None:
    told = {"images": given(0, 0, 1).images, "quota": (0, 0, 1), "sampler": "ddpm", "spec": SPECS, "run_token": "r"}
    assert why in with_own_model(tmp_path, few).refusal(SynthesiseRequest(**{**told, **changes}))


def test_a_silos_own_model_learns_from_pseudo_labels_and_draws_of_classes_that_it_has_enough_of(
    tmp_path: Path, few: Path
) -> None:
    node = with_own_model(tmp_path, few, least_class_images=5, least_training_images=1)
    prepare = PrepareRequest(spec=SPECS, train_seconds=100.0, images="pseudo", run_token="run-1")
    assert "the pseudo labels that this silo kept in this run cannot be read" in node.refusal(prepare)
    select = SelectRequest(weights=classifier(SPECS), thresholds=torch.zeros(3).double(), spec=SPECS, run_token="run-1")
    kept = node.ask(select).kept
    assert (sum(kept), node.ask(prepare).finished) == (30, True)
    both = node.own_model
    assert node.ask(sample_request(node, [0, 1], [3, 29], set_size=30)).images.shape == (2, 8, 8, 1)
    assert "number 30 with a set of 30" in node.refusal(sample_request(node, [0, 1], [3, 30], set_size=30))
    enough = kept[2] >= 5
    message = node.send(sample_request(node, [2], [3]))
    assert message.has_error() != enough
    assert enough or "class index 2 counts as absent here" in message.error.reason
    # From labels alone it is another model.
    node.ask(PrepareRequest(spec=SPECS, train_seconds=100.0, images="labelled", run_token="run-1"))
    assert node.own_model != both
    few_images = with_own_model(tmp_path / "few", few, least_training_images=41)
    labelled = PrepareRequest(spec=SPECS, train_seconds=100.0, images="labelled", run_token="run-1")
    assert "line 'least-training-images = 41'" in few_images.refusal(labelled)
