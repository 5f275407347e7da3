"""Few labels: whole runs in this process, interrupted ones, and silos and classes that have no labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from few_label_runs import FEW, TINY, begin
from flwr.app import ArrayRecord, Message
from interrupted_runs import assert_equal_runs, killed_when_saving, resumed, run, settings, whole_run
from one_silo import policy_file
from real_silos import real_settings, run_real, write_digits, write_few_labels
from safetensors.torch import load_file

from fedsynth.api.in_process_run import begin_run
from fedsynth.config.methods import DDSASettings
from fedsynth.errors import RunError, UserError
from fedsynth.few_labels.quota import missing_quota
from fedsynth.messages import transport
from fedsynth.output import RunFolder
from strategies.averaging.robust import FedMedian
from strategies.averaging.updates import Update
from strategies.few_labels.schedule import phases_of, place
from strategies.run.rounds import Round


def backwards(replies: list[Message]) -> list[Message]:
    return replies[::-1]


def test_every_round_belongs_to_one_phase() -> None:
    given = DDSASettings(classifier_rounds=2, num_rounds=3, compare_classifiers="labelled,all")
    phases = phases_of(given)
    assert [(phase.name, phase.rounds) for phase in phases] == [
        *(("first", 2), ("confusion", 1), ("selection", 1), ("diffusion", 3), ("synthesis", 1)),
        *(("synthetic", 2), ("labelled", 2), ("all", 2)),
    ]
    places = [place(phases, number) for number in range(1, 15)]
    assert places == [(index, number) for index, phase in enumerate(phases) for number in range(1, phase.rounds + 1)]
    with pytest.raises(ValueError, match="round 15 of 14"):
        place(phases, 15)
    names = [phase.name for phase in phases_of(DDSASettings(pseudo_selection="none"))]
    assert names == ["diffusion", "synthesis", "synthetic"]


def test_a_run_killed_in_every_phase_and_resumed_equals_the_run_in_one_go_whoever_answers_first(tmp_path: Path) -> None:
    given = settings(
        tmp_path, "ddsa", **FEW, labelled_alpha=0.3, compare_classifiers="fixmatch,all", confusion_noise=0.5
    )
    whole = whole_run(given)
    folder, content = whole
    with killed_when_saving(2):
        run(given)
    for number in (3, 4, 5, 6, 7):
        with killed_when_saving(number):
            run(resumed(given), backwards)
    assert_equal_runs(run(resumed(given), backwards), whole)
    rows = folder.read_metrics()
    assert len(rows) == 8
    assert [row["round"] for row in rows if "accuracy" in row] == [1, 6, 7, 8]
    results = json.loads((folder.path / "results.json").read_text())
    assert results["classifier-accuracy-synthetic"] == rows[5]["accuracy"]
    assert results["synthesised-images"] > 0
    assert [table.heading for table in content.tables] == [
        *("What the classifiers learnt", "Pseudo-labels", "What was synthesised where")
    ]
    by_silo = content.tables[2].rows
    assert sum(row["synthesised"] for row in by_silo.values()) == results["synthesised-images"]
    assert set(load_file(folder.models / "classifier" / "model.safetensors")) > {"head.weight", "head.bias"}
    with pytest.raises(UserError, match="num-rounds = 2: the run to resume has 1"):
        run({**resumed(given), "num-rounds": 2})


def test_silos_without_labels_or_without_other_images_and_classes_without_labels_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def labelled(federation: Any) -> dict[str, Any]:
        known = [part[federation.train.labels[part] != 3] for part in federation.labelled]
        return {"labelled": [known[0][:0], known[1], known[2]], "parts": [*federation.parts[:2], known[2]]}

    caplog.set_level(logging.INFO, "fedsynth")
    rounds: list[Round] = []
    given = {**TINY, "pseudo_selection": "all", "holdout_fraction": 0.0, "compare_classifiers": "labelled,pseudo,all"}
    started, outcome = begin(tmp_path, given, labelled, rounds.append)
    assert "silo-0 has no labels: it trains no classifier, and synthesises nothing" in caplog.text
    assert "class '3' is labelled by nobody: it is left out" in caplog.text
    assert "silo-2 tells of no unlabelled images" in caplog.text
    assert outcome.notes == ("no images of class 3: nobody labels it",)
    assert len(outcome.labels) == 18
    assert 3 not in outcome.labels
    pseudo, silos = outcome.tables[1].rows, outcome.tables[2].rows
    assert (pseudo["3"]["kept"], pseudo["3"]["as precise as asked"]) == (0, "nobody labels it")
    assert (silos["silo-0"]["labelled"], silos["silo-0"]["synthesised"]) == (0, 0)
    assert silos["silo-2"]["unlabelled"] == 0
    # The silo without labels does train the diffusion model, on its pseudo-labels, and what learns from them or all.
    assert silos["silo-0"]["pseudo-labelled"] > 0
    assert [each.metrics["silos"] for each in rounds if each.number != 4] == [2, 3, 3, 2, 2, 3, 3]
    labels, kept = (sum(row[name] for row in silos.values()) for name in ("labelled", "pseudo-labelled"))
    images = sum(map(len, started.task.federation.parts))
    assert [each.metrics["num-examples"] for each in rounds[-3:]] == [labels, labels + kept, images]
    assert started.strategy.state_dict()["found"]["made"][0] == [0] * 10


def test_the_diffusion_model_is_averaged_as_is_asked(tmp_path: Path) -> None:
    answered: list[list[dict[str, torch.Tensor]]] = []
    combine = FedMedian.combine

    def watched(rule: FedMedian, server_round: int, updates: Sequence[Update]) -> ArrayRecord:
        answered.append([transport.decode_tensors(update.record) for update in updates])
        return combine(rule, server_round, updates)

    rounds: list[Round] = []
    given = {**TINY, "diffusion_strategy": "fedmedian", "num_rounds": 2, "train_steps": 4, "pseudo_selection": "none"}
    with mock.patch.object(FedMedian, "combine", watched):
        begin(tmp_path / "median", given, None, rounds.append)
    assert [len(updates) for updates in answered] == [3, 3]
    for each, updates in zip(rounds, answered, strict=False):
        for name, weights in transport.decode_tensors(each.arrays).items():
            assert torch.equal(weights, torch.stack([update[name] for update in updates]).median(0).values)
    flat = {key.replace("_", "-"): value for key, value in given.items()}
    proximal = begin_run({**flat, "diffusion-strategy": "fedprox", "state-dir": str(tmp_path / "proximal")})
    assert [request.proximal_mu for _, request in proximal.strategy.questions(1, proximal.arrays)] == [0.01] * 3


def test_without_pseudo_labels_a_run_is_labels_and_synthesis_alone(tmp_path: Path) -> None:
    started, outcome = begin(
        tmp_path, {**TINY, "pseudo_selection": "none", "synthetic_quota": "gap", "sample_from": "ema"}
    )
    assert list(outcome.measures) == ["classifier-accuracy-synthetic", "synthesised-images"]
    assert [table.heading for table in outcome.tables] == ["What the classifiers learnt", "What was synthesised where"]
    counts = started.task.census.label_counts
    assert np.array_equal(outcome.tables[1].rows["silo-1"]["labelled"], int(counts[1].sum()))
    assert all(bool(torch.isfinite(weight).all()) for weight in outcome.classifier.values())


def test_real_silos_without_labels_without_other_images_and_with_noise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silos = {
        "north": write_few_labels(tmp_path / "north", (0, 1, 2), 12, 20),
        "south": write_digits(tmp_path / "south", (0, 1), 1),
        "east": write_few_labels(tmp_path / "east", (), 0, 20),
    }
    given = {"classifier_rounds": 1, "classifier_steps": 3, "train_steps": 2, "num_rounds": 1, "pseudo_bins": 4}
    flat = real_settings(tmp_path / "run", strategy="ddsa", num_clients=3, compare_classifiers="pseudo", **given)
    folder = run_real(flat, silos, north={"policy-path": policy_file(tmp_path / "policy", count_noise=0.5)})
    assert "north: images: 36 files in 3 classes; no class: 20 unlabelled files" in caplog.text
    assert "east has no labels: it trains no classifier, and synthesises nothing" in caplog.text
    assert "south tells of no unlabelled images" in caplog.text
    results = json.loads((folder.path / "results.json").read_text())
    assert results["synthesised-images"] == sum(missing_quota(told_by(folder)).flatten().tolist()) > 0
    # Nobody at real silos knows the true labels, and the server has no test images.
    assert not {name for name in results if "precision" in name or "accuracy" in name}
    assert 0 < results["pseudo-label-share"] <= 1
    assert load_file(folder.models / "classifier" / "model.safetensors")
    with pytest.raises(UserError, match="'all' learns from every true label, which a simulation alone knows"):
        run_real({**flat, "compare-classifiers": "all"}, silos)
    silos = {"east": silos["east"]}
    one = real_settings(tmp_path / "one", strategy="ddsa", num_clients=1, classifier_rounds=1, classifier_steps=1)
    with pytest.raises(RunError, match="all images of all silos are unlabelled"):
        run_real(one, silos)
    with pytest.raises(RunError, match="all images of this silo are unlabelled, and strategy = 'fedavg' learns from"):
        run_real(real_settings(tmp_path / "other", strategy="fedavg", num_clients=1), silos)


def told_by(folder: RunFolder) -> torch.Tensor:
    """What the silos of a run told of their labels, (K, C)."""
    return torch.tensor([silo["label-counts"] for silo in folder.read_partition()["clients"]])
