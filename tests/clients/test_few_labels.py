"""What one silo answers where labels are few, and what a real one refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from one_silo import SPEC, Node, policy_file, settings_of, simulated
from safetensors.torch import load_file

from fedsynth.data import load_federation
from fedsynth.diffusion import initial_unet
from fedsynth.evaluation.networks.domain_classifier import initial_classifier
from fedsynth.messages import ConfusionRequest, SelectRequest, SynthesiseRequest, TrainRequest, transport
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


@pytest.mark.parametrize("kind", ["confusion", "select", "synthesise", "train"])
def test_a_real_silo_answers_none_of_it_whatever_its_server_says_of_the_run(
    kind: str, tmp_path: Path, image_folder: Path
) -> None:
    policy = policy_file(tmp_path)
    node = Node(settings_of(tmp_path, **FEW), SPEC, data_path=str(image_folder), policy_path=policy)
    weights = classifier(SPEC)
    requests = {
        "confusion": ConfusionRequest(weights=weights, bins=5, spec=SPEC),
        "select": SelectRequest(weights=weights, thresholds=torch.zeros(2).double(), spec=SPEC, run_token="run-1"),
        "synthesise": SynthesiseRequest(weights=weights, quota=(1, 1), sampler="ddpm", spec=SPEC, run_token="run-1"),
        "train": train_request(SPEC, "labelled"),
    }
    refused = node.refusal(requests[kind])
    assert "is not answered here" in refused if kind != "train" else "few labels are for simulated silos" in refused
