"""Whole runs over silos that have folders of their own, and different classes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from interrupted_runs import KilledError, die, in_round, resumed
from one_silo import policy_file
from PIL import Image
from real_silos import keys_for_sums, real_settings, run_real, write_digits, write_silos
from spoiled_answers import Tamper, failed
from tiny_runs import images_of

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import sender_of, transport
from fedsynth.output import RunFolder
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import read_known, write_known
from fedsynth.spec import ImageSpec
from strategies.run.opening import load_reference

UNION = ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_silos(tmp_path_factory.mktemp("silos"))


@pytest.mark.parametrize("strategy", ["dfd", "fedavg"])
def test_silos_with_different_classes_make_one_dataset(strategy: str, silos: dict[str, Path], tmp_path: Path) -> None:
    folder = run_real(real_settings(tmp_path, strategy=strategy), silos)
    assert sorted(path.name for path in folder.synthetic.iterdir() if path.is_dir()) == UNION
    assert len(images_of(folder)) == 30
    written = json.loads(folder.partition.read_text())
    assert (written["classes"], written["image-size"], written["image-channels"]) == (UNION, 8, 1)
    assert [client["silo-name"] for client in written["clients"]] == ["east", "north", "south"]
    # A tenth of 36 and of 24 images is held out; the classes that a silo lacks count 0.
    assert [client["label-counts"] for client in written["clients"]] == [
        [0, 0, 10, 11],
        [10, 11, 11, 0],
        [10, 11, 11, 0],
    ]
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["round"], status["rounds"]) == ("finished", *[4 if strategy == "dfd" else 2] * 2)
    assert sorted(status["silos"]) == ["east", "north", "south"]
    for row in folder.read_metrics():
        assert sorted(row["attendance"]) == ["east", "north", "south"]
        assert all(was["seconds"] >= 0 and "left-out" not in was for was in row["attendance"].values())
        assert all(("loss" in was) == (strategy == "fedavg") for was in row["attendance"].values())


def test_run_says_what_was_not_measured(silos: dict[str, Path], tmp_path: Path) -> None:
    folder = run_real(real_settings(tmp_path, evaluate=True, membership_inference=False), silos)
    notes = json.loads(folder.results.read_text())["notes"]
    assert "not measured: fidelity, utility, copies of training images and membership inference" in notes
    assert "reference-root" in folder.report.read_text()


def test_silos_measure_with_the_noise_of_their_policies_and_tell_no_loss(
    silos: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noisy = policy_file(tmp_path / "noisy", statistics_epsilon=10.0, evaluation_epsilon=2.0, tell_train_loss=False)
    exact = policy_file(tmp_path / "exact", tell_train_loss=False)
    silent = policy_file(tmp_path / "silent", answers=("describe", "prepare", "train"), tell_train_loss=False)
    given = {name: {"policy-path": path} for name, path in (("north", noisy), ("south", exact), ("east", silent))}
    settings = real_settings(tmp_path, strategy="fedavg", evaluate_silos=True, holdout_fraction=0.3)
    folder = run_real(settings, silos, **given)
    results, page = json.loads(folder.results.read_text()), folder.report.read_text()
    measured = results["silo-measures"]
    assert measured["north"]["noise"] > 0 == measured["south"]["noise"]
    assert (measured["south"]["images"], measured["south"]["held-out-images"]) == (36, 11)
    assert measured["east"] == {}
    assert 0 <= results["silo-recall"] <= 1
    assert results["silo-frechet-distance"] > 0
    assert "in every mean of the silos" in page
    assert "carry the noise that its policy asks for" in page
    assert "accuracy and recall: east" in page
    assert "line 'answers = [" in caplog.text
    assert not [row for row in folder.read_metrics() if "loss" in row]


def test_reference_of_the_operator_measures_fidelity_and_utility_but_no_copies(
    silos: dict[str, Path], tmp_path: Path
) -> None:
    reference = write_digits(tmp_path / "reference", range(4), part=4, per_class=15)
    quick: dict[str, Scalar] = {"classifiers": "logistic-regression", "classifier_seeds": 1}
    quick |= {"strategy": "fedavg", "feature_extractor": "pixels"}
    settings = real_settings(tmp_path, evaluate=True, reference_root=str(reference), **quick)
    results = json.loads(run_real(settings, silos).results.read_text())
    assert 0 <= results["accuracy-logistic-regression"] <= 1
    assert results["n"] == 12, "a fifth of 60 images is the test fold"
    assert not [key for key in results if "membership" in key or key in ("copied-share", "authenticity")]
    assert "not measured: copies of training images" in results["notes"]


def test_reference_may_lie_in_silos_folders(tmp_path: Path) -> None:
    for silo in ("north", "south"):
        write_digits(tmp_path / silo, range(4), part=4, per_class=15)
    config = RunConfig.from_run_config({"dataset": "silos", "reference-root": str(tmp_path)})
    folds = load_reference(config, ImageSpec(1, 8, tuple("0123")))
    assert folds is not None
    assert [Counter(fold.silos.tolist()) for fold in folds if fold.silos is not None] == [
        {"north": 48, "south": 48},
        {"north": 12, "south": 12},
    ]


def test_reference_with_a_class_that_no_silo_has_is_refused_before_training(
    silos: dict[str, Path], tmp_path: Path
) -> None:
    reference = write_digits(tmp_path / "reference", (1, 7), part=4)
    with pytest.raises(UserError, match=r"reference-root = .*class folder '7' .* is not a class of this dataset"):
        run_real(real_settings(tmp_path, evaluate=True, reference_root=str(reference)), silos)
    assert not list(tmp_path.rglob("models"))


def test_silo_of_other_sizes_is_resized_once_the_operator_says_the_size(silos: dict[str, Path], tmp_path: Path) -> None:
    large = write_digits(tmp_path / "large", (2, 3), 2, size=16)
    folder = run_real(real_settings(tmp_path, image_size=8), {**silos, "east": large})
    assert {np.asarray(Image.open(folder.path / name)).shape for name in images_of(folder)} == {(8, 8)}


@pytest.mark.parametrize("trained", [True, False])
def test_silo_that_is_gone_is_reported_by_name_and_the_run_goes_on(
    trained: bool, silos: dict[str, Path], tmp_path: Path
) -> None:
    def lost(reply: Message) -> bool:
        trains = reply.has_content() and "loss" in reply.content.metric_records["metrics"]
        predicts = "epsilon" in transport.array_names(reply)
        return sender_of(reply).name == "north" and (predicts or (trains and not trained))

    def gone(reply: Message) -> Message:
        """The SuperLink answers in the silo's place, without its name."""
        error = failed(reply, "Node Unavailable")
        error.metadata.__dict__["_src_node_id"] = 1
        return error

    tamper: Tamper = lambda replies: [gone(reply) if lost(reply) else reply for reply in replies]  # noqa: E731
    folder = run_real(real_settings(tmp_path), silos, tamper)
    said = folder.log.read_text()
    assert said.index("north left out: Node Unavailable") < said.index("round 4/4")
    assert sorted(path.name for path in folder.synthetic.iterdir() if path.is_dir()) == UNION
    assert "south: own model ready" in said
    assert ("north: own model ready" in said) == trained
    if trained:
        assert [row["attendance"]["north"]["left-out"] for row in folder.read_metrics()] == ["Node Unavailable"] * 4
        assert json.loads(folder.status.read_text())["silos"]["north"]["left-out"] == "Node Unavailable"


def test_resumed_run_ends_like_one_that_was_never_interrupted(silos: dict[str, Path], tmp_path: Path) -> None:
    settings = real_settings(tmp_path / "broken")
    with pytest.raises(KilledError):
        run_real(settings, silos, in_round(3, die))
    # Node ids go by position here: other ones than before.
    folder = run_real(resumed(settings), dict(reversed(silos.items())))
    whole = run_real(real_settings(tmp_path / "whole"), silos)
    assert images_of(folder) == images_of(whole)
    assert len(images_of(folder)) == 30
    assert [row["round"] for row in folder.read_metrics()] == [1, 2, 3, 4]
    assert json.loads(folder.status.read_text())["state"] == "finished"


def test_run_is_not_resumed_with_other_classes(silos: dict[str, Path], tmp_path: Path) -> None:
    settings = real_settings(tmp_path)
    with pytest.raises(KilledError):
        run_real(settings, silos, in_round(3, die))
    grown = tmp_path / "grown"
    shutil.copytree(silos["east"], grown)
    write_digits(grown, (9,), 3)
    with pytest.raises(UserError, match=r"classes: the silos now give \['0', '1', '2', '3', '9'\], the run to resume"):
        run_real(resumed(settings), {**silos, "east": grown})
    assert RunFolder(tmp_path / "runs" / "run").read_config().run.resume == ""


def test_look_alike_class_ends_the_run_before_training(silos: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(silos["east"], odd)
    (odd / "3").rename(odd / "2 ")
    with pytest.raises(RunError, match=r"'2' \(.*\), '2 ' \(east\) are probably the same"):
        run_real(real_settings(tmp_path), {**silos, "east": odd})
    status = json.loads((tmp_path / "runs" / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "probably the same" in status["error"]
    assert not list(tmp_path.rglob("models"))


def test_unwritable_state_folder_is_told_with_the_silo(silos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"3 needed: east: UserError: state folder .*another --state-path"):
        run_real(real_settings(tmp_path, strategy="pooled"), silos, east={"state-path": str(tmp_path / "file")})


def test_real_silos_answer_in_sums_alone_and_know_one_another_s_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("east", "north", "south")
    silos = write_silos(tmp_path / "images", dict.fromkeys(names, (0, 1)))
    given = keys_for_sums(tmp_path / "keys", names)
    no_single_answers = policy_file(tmp_path / "policy", answers=("describe", "prepare", "masked"))
    for config in given.values():
        config["policy-path"] = no_single_answers
    settings = real_settings(tmp_path, secure_aggregation=True, weights="constant")
    folder = run_real(settings, silos, **given)
    assert len(images_of(folder)) == 30
    assert "the server could read sums" in (folder.synthetic / "README.md").read_text()
    (audit,) = (tmp_path / "state" / "silos" / "north").glob("audit.jsonl")
    asked = {json.loads(line)["message"] for line in audit.read_text().splitlines()}
    assert asked == {"query.describe", "query.prepare", "query.masked", "query.reveal"}

    # The server has another silo's place taken by one of its own: whoever knows the first one notices.
    stranger = SecretKeys.generate().public
    known = read_known(Path(given["north"]["known-keys-path"]))
    write_known(Path(given["north"]["known-keys-path"]), {**known, "south": stranger})
    with pytest.raises(RunError, match="the key of 'south' is not the one that is known here"):
        run_real({**settings, "run-name": "substituted"}, silos, **given)

    # Without keys a silo takes no part, and says so; a policy without the word refuses before anybody trains.
    with pytest.raises(RunError, match="no keys for secure sums"):
        run_real({**settings, "run-name": "keyless"}, silos)
    strict = policy_file(tmp_path / "strict", answers=("describe", "prepare", "epsilon"))
    with pytest.raises(RunError, match="the run asks 'masked'"):
        run_real({**settings, "run-name": "forbidden"}, silos, **{name: {"policy-path": strict} for name in names})


def test_policies_decide_which_classes_are_summed_and_who_draws_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = {"east": (0, 1), "north": (0, 1), "south": (0, 1), "west": (0,)}
    given = keys_for_sums(tmp_path / "keys", tuple(classes))
    # South answers no sum about a class that fewer than four hold, whether or not it holds the class.
    given["south"]["policy-path"] = policy_file(tmp_path / "south", least_holders=4)
    no_images = ("describe", "prepare", "masked")
    given["east"]["policy-path"] = policy_file(tmp_path / "east", answers=no_images)
    settings = real_settings(
        tmp_path, num_clients=4, secure_aggregation=True, weights="constant", few_holders="pooled", num_samples=12
    )
    folder = run_real(settings, write_silos(tmp_path / "images", classes), **given)
    assert sorted(path.parent.name for path in folder.synthetic.glob("*/*.png")) == ["0"] * 6 + ["1"] * 6
    assert "east draws no images of classes that few hold: line 'answers = [" in caplog.text
    card = (folder.synthetic / "README.md").read_text()
    assert "class 1: too few silos hold it to hide an answer in a sum: each image was drawn by one of them" in card
    audits = {name: (tmp_path / "state" / "silos" / name / "audit.jsonl").read_text() for name in classes}
    entries = {name: list(map(json.loads, text.splitlines())) for name, text in audits.items()}
    asked = {name: {entry["message"] for entry in found} for name, found in entries.items()}
    assert [name for name, kinds in asked.items() if "query.sample" in kinds] == ["north"]
    assert all({"query.masked", "query.reveal"} <= kinds for kinds in asked.values())
    assert {entry["outcome"] for found in entries.values() for entry in found} == {"answered"}
