"""Few labels where silos keep their diffusion models: what silos lack is drawn by all of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from few_label_runs import TINY, begin
from flwr.app import Message
from interrupted_runs import assert_equal_runs, killed_when_saving, resumed, run, settings, whole_run
from one_silo import policy_file
from PIL import Image
from real_silos import real_settings, run_real, write_digits, write_few_labels
from safetensors.torch import load_file
from tiny_runs import images_of, without_pictures

from fedsynth.config import RunConfig, Scalar
from fedsynth.data import load_federation
from fedsynth.errors import RunError, UserError
from fedsynth.few_labels.quota import gap_quota, missing_quota
from fedsynth.messages import SampleAnswer, sender_of
from fedsynth.policy import Plan, plan_of
from fedsynth.spec import ImageSpec

FEW: dict[str, Scalar] = {"labelled_fraction": 0.4, "num_clients": 3, "classifier_rounds": 1, "labelled_alpha": 0.3}
ROUNDS = {"pooled": 1, "dfd": 2}
OURS = ["pooled", "dfd"]


def given(folder: Path, diffusion: str, **changes: Scalar) -> dict[str, Scalar]:
    own: dict[str, Scalar] = {"diffusion_strategy": diffusion, "sampler": "ddpm"}
    rounds: dict[str, Scalar] = {"num_rounds": ROUNDS[diffusion]} if diffusion == "dfd" else {}
    return settings(folder, "ddsa", **{**FEW, **own, **rounds, **changes})


def kept_by(state: Path) -> dict[str, torch.Tensor]:
    """Labels of the images that came to every silo, by its name."""
    return {
        path.parts[-4]: load_file(path)["labels"]
        for path in sorted(state.glob("*/few-labels/*/synthesised-images.safetensors"))
    }


def labels_of(asked: dict[str, Scalar]) -> torch.Tensor:
    """Labels of every simulated silo by class, int64 (K, C)."""
    config = RunConfig.from_run_config(asked)
    federation = load_federation(config)
    silos = (federation.silo(k, config) for k in range(config.run.num_clients))
    return torch.from_numpy(np.stack([silo.train.label_counts() for silo in silos]))


@pytest.mark.parametrize("diffusion", OURS)
def test_a_run_killed_while_it_draws_and_resumed_equals_the_run_in_one_go_whoever_answers_first(
    diffusion: str, tmp_path: Path
) -> None:
    asked = given(tmp_path, diffusion)
    whole = whole_run(asked)
    folder, content = whole
    rounds = 5 + ROUNDS[diffusion]
    # Within cooperation, or before what was drawn is handed out; tests/long has every phase.
    with killed_when_saving(5):
        run(asked)
    with killed_when_saving(rounds):
        run(resumed(asked), lambda replies: replies[::-1])
    assert_equal_runs(run(resumed(asked), lambda replies: replies[::-1]), whole)
    assert len(folder.read_metrics()) == rounds
    # What silos lack came to them, and the report says so as before.
    quota = missing_quota(labels_of(asked))
    found = kept_by(tmp_path / "state")
    assert int(quota.sum()) > 0
    for k, wanted in enumerate(quota):
        if wanted.sum():
            assert torch.equal(torch.bincount(found[f"silo-{k}"], minlength=10), wanted)
    results = json.loads((folder.path / "results.json").read_text())
    assert results["synthesised-images"] == int(quota.sum())
    by_silo = content.tables[2]
    assert [row["synthesised"] for row in by_silo.rows.values()] == quota.sum(1).tolist()
    assert "drawn from the silos' own models" in by_silo.explanation
    assert not (folder.models / "global").exists()
    # Every silo that trained says how.
    assert sorted(content.losses) == ["silo-0", "silo-1", "silo-2"]


@pytest.mark.parametrize("diffusion", OURS)
def test_silos_and_classes_without_labels_are_named_and_gaps_are_filled(
    diffusion: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def labelled(federation: Any) -> dict[str, Any]:
        known = [part[federation.train.labels[part] != 3] for part in federation.labelled]
        return {"labelled": [known[0][:0], known[1], known[2][:9]], "parts": [*federation.parts[:2], known[2][:9]]}

    caplog.set_level(logging.INFO, "fedsynth")
    own: dict[str, Scalar] = {"diffusion_strategy": diffusion, "num_rounds": 2, "synthetic_quota": "gap"}
    if diffusion == "pooled":
        own.pop("num_rounds")
    asked = {**TINY, "num_rounds": "auto", **own, "pseudo_selection": "all", "holdout_fraction": 0.0}
    started, outcome = begin(tmp_path, asked, labelled)
    assert "silo-0 has no labels: it trains no classifier, and synthesises nothing" in caplog.text
    assert "class '3' is labelled by nobody: it is left out" in caplog.text
    assert outcome.notes == ("no images of class 3: nobody labels it",)
    assert (len(outcome.labels), 3 in outcome.labels) == (18, False)
    counts = started.task.census.label_counts
    made = started.strategy.state_dict()["found"]["made"]
    assert made == gap_quota(counts).tolist()
    assert made[0] == [0] * 10
    assert sum(map(sum, made)) > 0
    # The silo without labels trains a model on its pseudo-labels, and draws from it for others.
    assert sorted(outcome.curves) == ["silo-0", "silo-1", "silo-2"]
    assert all(outcome.curves.values())


def test_pooled_images_are_those_of_the_holders_models_and_come_to_those_who_lack_them(tmp_path: Path) -> None:
    drawn: dict[str, torch.Tensor] = {}
    asked: dict[str, int] = {}

    def watch(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.metadata.message_type == "query.sample":
                name = f"silo-{sender_of(reply).partition}"
                drawn[name] = SampleAnswer.from_message(reply).images
                asked[name] = len(drawn[name])
        return replies

    folder, _ = run(given(tmp_path, "pooled", pseudo_selection="none", synthetic_multiplier=2.5), watch)
    counts = labels_of(given(tmp_path, "pooled"))
    quota = missing_quota(counts, 2.5)
    everything = {image.numpy().tobytes() for images in drawn.values() for image in images}
    assert sum(asked.values()) == 10 + int(quota.sum())
    came = 0
    for path in sorted((tmp_path / "state").glob("*/few-labels/*/synthesised-images.safetensors")):
        given_to = load_file(path)
        own = {image.numpy().tobytes() for image in drawn[path.parts[-4]]}
        images = [image.numpy().tobytes() for image in given_to["images"]]
        assert {*images} <= everything - own
        came += len(images)
    assert came == int(quota.sum())
    published = [np.asarray(Image.open(path)) for path in sorted(folder.synthetic.glob("*/*.png"))]
    assert len(published) == 10
    assert {image.tobytes() for image in published} <= everything


@pytest.mark.parametrize("diffusion", OURS)
def test_real_silos_train_on_pseudo_labels_and_are_given_what_they_lack(diffusion: str, tmp_path: Path) -> None:
    silos = {
        "north": write_few_labels(tmp_path / "north", (0, 1, 2), 12, 20),
        "south": write_digits(tmp_path / "south", (0, 1), 1),
        "east": write_few_labels(tmp_path / "east", (), 0, 20),
    }
    tiny: dict[str, Scalar] = {"classifier_rounds": 1, "classifier_steps": 3, "train_steps": 2, "num_samples": 9}
    own: dict[str, Scalar] = {"diffusion_strategy": diffusion, "pseudo_selection": "all", "num_clients": 3}
    if diffusion == "dfd":
        own |= {"num_rounds": 2, "screening": False}
    else:
        own |= {"num_rounds": "auto"}
    flat = real_settings(tmp_path / "run", strategy="ddsa", **tiny, **own)
    word = {"dfd": "epsilon", "pooled": "sample"}[diffusion]
    answers = ("describe", "prepare", "train", "select", "synthesise", word)
    allowing = {"answers": answers, "strategies": ("ddsa",), "count_noise": 0.5}
    policies = {name: {"policy-path": policy_file(tmp_path / f"policy-{name}", **allowing)} for name in silos}
    with without_pictures():
        folder = run_real(flat, silos, **policies)
    counts = torch.tensor([silo["label-counts"] for silo in folder.read_partition()["clients"]])
    results = json.loads((folder.path / "results.json").read_text())
    assert results["synthesised-images"] == int(missing_quota(counts).sum()) > 0
    assert len(images_of(folder)) == 9
    without = {**allowing, "answers": tuple(kind for kind in answers if kind != word)}
    policies["south"] = {"policy-path": policy_file(tmp_path / "policy-south", **without)}
    with pytest.raises(RunError, match=f"south: line 'answers = .*the run asks '{word}'"):
        run_real({**flat, "run-name": "again"}, silos, **policies)


def test_what_does_not_go_together_is_refused_by_name() -> None:
    ours = {"strategy": "ddsa", "diffusion-strategy": "pooled"}
    refused = {
        ("num-rounds", 5): "num-rounds = 5: acts with diffusion-strategy = 'fedavg', 'fedmedian',",
        ("sample-from", "ema"): "sample-from = 'ema': acts with diffusion-strategy = 'fedavg', 'fedmedian',",
        ("screening", False): "screening = False: acts with diffusion-strategy = 'dfd' only",
        ("secure-aggregation", True): "secure-aggregation = True: acts with strategy = 'dfd', 'fedavg'",
        ("aggregators", "silos"): "aggregators = 'silos': acts with strategy = 'fedavg'",
        ("dp-epsilon", 8.0): "dp-epsilon = 8.0: strategy = 'ddsa' has silos train classifiers",
        ("strategy", "fedavg"): "diffusion-strategy = 'pooled': acts with strategy = 'ddsa' only",
        ("sampler", "ula"): "sampler = 'ula': acts with strategy = 'dfd' only",
    }
    for (key, value), why in refused.items():
        with pytest.raises(UserError, match=re.escape(why)):
            RunConfig.from_run_config({**ours, key: value})
    with pytest.raises(UserError, match="copy-check = False: acts with diffusion-strategy = 'dfd' or 'pooled' only"):
        RunConfig.from_run_config({"strategy": "ddsa", "copy-check": False})
    with pytest.raises(UserError, match="num-rounds = 1001: must be <= num-train-timesteps = 1000"):
        RunConfig.from_run_config({**ours, "diffusion-strategy": "dfd", "num-rounds": 1001})


def test_a_run_asks_what_the_way_of_drawing_needs() -> None:
    spec = ImageSpec(1, 8, ("a", "b"))

    def plan(diffusion: str) -> Plan:
        given: dict[str, Scalar] = {"strategy": "ddsa", "diffusion-strategy": diffusion, "local-steps": 70}
        if diffusion == "fedavg":
            given.pop("local-steps")
        return plan_of(RunConfig.from_run_config({**given, "num-samples": 30, "pseudo-selection": "none"}), spec)

    averaged, pooled, together = plan("fedavg"), plan("pooled"), plan("dfd")
    shared = ("describe", "prepare", "train", "synthesise")
    assert (averaged.answers, pooled.answers) == (shared, (*shared, "sample"))
    assert together.answers == (*shared, "epsilon")
    assert (averaged.optimiser_steps, pooled.optimiser_steps, together.optimiser_steps) == (800, 470, 470)
    assert (averaged.images_drawn, pooled.images_drawn, together.images_drawn) == (0, 30, 0)
    # Twenty timesteps, and four questions of the calibration.
    assert (pooled.noise_queries, together.noise_queries) == (0, 24)
