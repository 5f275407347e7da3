from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.common.constant import ErrorCode
from one_silo import (
    SPEC,
    Node,
    drawn_images,
    epsilon_request,
    noisy_samples,
    policy_file,
    sample_request,
    settings_of,
    simulated,
)

import clients.models.local_model
from clients.models.local_model import load_network
from fedsynth.data import load_federation
from fedsynth.diffusion import early_stopping, noise_predictor
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.messages import PrepareAnswer, PrepareRequest, UploadRequest, transport

CPU = torch.device("cpu")
Trained = Callable[..., Node]

BOOKKEEPING = {"audit.jsonl", ".audit.jsonl.lock", "ledger.json", "ledger.lock", "released"}
BOOKKEEPING |= {"privacy.jsonl", ".privacy.jsonl.lock"}
"""What a real silo writes whatever it is asked."""


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Path) -> Node:
    """A silo with a folder, a name and a state folder of its own."""
    own = {"silo_name": "clinic", "state_path": str(tmp_path / "own-state"), "policy_path": policy_file(tmp_path)}
    return Node(settings_of(tmp_path), SPEC, data_path=str(image_folder), **own)


def predictor_of(node: Node) -> PredictNoise:
    return noise_predictor(load_network(node.own_model, CPU), node.config.recipe)


def test_prepare_without_training_says_what_the_silo_holds(clinic: Node, tmp_path: Path) -> None:
    answer = clinic.ask(PrepareRequest(spec=SPEC))
    assert answer.label_counts in ((5, 4), (6, 3)), "one image of ten is held out"
    assert answer.num_examples == sum(answer.label_counts) == 9
    assert (answer.steps, answer.loss, answer.finished, answer.copied_share) == (None, None, False, None)
    assert answer.curve == []
    assert {path.name for path in (tmp_path / "own-state" / "clinic").iterdir()} == BOOKKEEPING


def test_slices_report_progress_until_the_model_is_in_the_silo_s_own_state_folder(
    clinic: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [clinic.prepare(1e-9) for _ in range(4)]
    assert [(answer.steps, answer.finished) for answer in slices] == [(1, False), (2, False), (3, False), (4, True)]
    last = slices[-1]
    assert [answer.curve for answer in slices[:3]] == [[], [], []]
    assert [step for step, _ in last.curve] == [1, 2, 3, 4]
    assert last.loss == last.curve[-1][1]
    assert last.train_seconds > 0
    assert clinic.own_model.parent == tmp_path / "own-state" / "clinic" / "models"
    assert not (tmp_path / "state").exists()
    record = clinic.context.state.config_records["local-model"]
    made_for = {"image-channels": 1, "image-size": 8, "classes": ["even", "odd"]}
    assert record == {"path": str(clinic.own_model), "hash": clinic.own_model.name, **made_for}
    assert not clinic.context.state.array_records

    monkeypatch.setattr(clients.models.local_model, "train", None)
    again = clinic.again()
    assert fields_of(again.prepare()) == fields_of(last), "a model that is found is not trained again"
    assert again.own_model == clinic.own_model


def fields_of(answer: PrepareAnswer) -> dict[str, object]:
    return {**vars(answer), "seconds": None}


def test_answer_tells_what_share_of_the_model_s_samples_are_copies(trained: Trained) -> None:
    share = trained(holdout_fraction=0.25).prepare().copied_share
    assert share is not None
    assert 0 <= share <= 1


def test_steps_are_those_taken_when_training_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stopping, "MIN_INTERVAL", 1)
    monkeypatch.setattr(clients.models.local_model, "HeldOutLoss", lambda *_: lambda unet: 1.0)
    node = simulated(tmp_path, train_steps=40)
    # A check every second step: the first is progress, the next four are not.
    seen = [node.prepare(1e-9) for _ in range(5)]
    assert [(answer.steps, answer.finished) for answer in seen] == [(k, False) for k in (1, 2, 3, 4, 5)]
    last = node.prepare()
    assert (last.finished, last.steps, last.curve_steps[-1]) == (True, 10, 10.0)


def test_epsilon_is_the_own_network_s_bit_for_bit_at_one_timestep_or_several(trained: Trained) -> None:
    node, single = trained(), epsilon_request()
    one = node.ask(single)
    assert torch.equal(one.epsilon, predictor_of(node)(single.samples, 421, single.labels))
    assert (one.num_examples, one.seconds > 0) == (5, True)

    x, labels = noisy_samples(6), torch.arange(6)
    timesteps = torch.tensor([421, 5, 421, 999, 5, 421])
    request = epsilon_request(samples=x, labels=labels, timestep=None, timesteps=timesteps, rows=torch.arange(6))
    answer = node.ask(request)
    predict = predictor_of(node)
    for t in (421, 5, 999):
        rows = timesteps == t
        assert torch.equal(answer.epsilon[rows], predict(x[rows], t, labels[rows]))
    assert answer.rows is request.rows


def test_samples_are_the_plain_loop_from_the_shared_noise(trained: Trained) -> None:
    node = trained()
    answer = node.ask(sample_request(node, labels := [0, 1, 1, 0], numbers := [2, 3, 11, 19]))
    np.testing.assert_array_equal(answer.images.numpy(), drawn_images(node, predictor_of(node), labels, numbers))
    assert answer.images.dtype == torch.uint8


def test_upload_is_the_model_on_disk(trained: Trained) -> None:
    node = trained()
    answer = node.ask(UploadRequest(spec=node.spec))
    on_disk = load_network(node.own_model, CPU).state_dict()
    assert list(answer.arrays) == list(on_disk)
    assert all(torch.equal(transport.peek(answer.arrays[name]), value) for name, value in on_disk.items())
    assert answer.num_examples == len(load_federation(node.config).silo(1, node.config).train)


def test_answers_travel_in_the_configured_precision(trained: Trained) -> None:
    node = trained(wire_dtype="float16")
    request = epsilon_request(wire_dtype="float16")
    exact = predictor_of(node)(request.samples.half().float(), 421, request.labels)
    assert torch.equal(node.ask(request).epsilon, exact.half().float())
    assert transport.array_record(node.send(request), "epsilon")["epsilon"].dtype == "float16"
    sent = node.ask(UploadRequest(spec=node.spec)).arrays
    assert {array.dtype for array in sent.values()} == {"float16"}
    for name, value in load_network(node.own_model, CPU).state_dict().items():
        assert torch.equal(transport.peek(sent[name]), value.half()), name


def test_question_before_the_model_is_there_says_what_must_come_first(clinic: Node) -> None:
    for request in (epsilon_request(), sample_request(clinic, [0], [0]), UploadRequest(spec=SPEC)):
        reason = clinic.refusal(request)
        assert reason == "clinic: UserError: this silo has no trained model: 'query.prepare' failed or never came"


def test_label_that_the_model_does_not_know_is_answered_with_an_error(trained: Trained) -> None:
    assert (
        trained().refusal(epsilon_request(labels=torch.full((5,), 10))) == "silo-1: UserError: label 10 with 10 classes"
    )


def test_timestep_beyond_the_schedule_is_refused_by_name(trained: Trained) -> None:
    node, said = trained(), "must be 0 to 999, num-train-timesteps = 1000"
    for changes in ({"timestep": 1000}, {"timestep": None, "timesteps": torch.tensor([0, 5, 999, 1000, 3])}):
        message = node.send(epsilon_request(**changes))
        assert message.error.reason == f"silo-1: UserError: timestep 1000: {said}"
        assert message.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert node.ask(epsilon_request(999)).num_examples == 5


@pytest.mark.parametrize("shape", [(5, 1, 16, 16), (5, 4, 4, 4), (5, 3, 8, 8)])
def test_samples_of_another_shape_than_the_network_s_are_refused(shape: tuple[int, ...], trained: Trained) -> None:
    """A network of convolutions would work through samples of any size, and a policy limits that of images."""
    said = trained().refusal(epsilon_request(samples=torch.zeros(shape)))
    assert said == f"silo-1: UserError: samples of shape {shape[1:]}: the run's networks see (1, 8, 8)"


def test_full_disk_is_answered_by_name_and_leaves_nothing_half_written(
    clinic: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        reason = clinic.refusal(PrepareRequest(spec=SPEC, train_seconds=1e-9))
    state = tmp_path / "own-state" / "clinic"
    assert reason.startswith("clinic: UserError: state folder '…/clinic': No space left on device: make")
    assert [path for path in (state / "models").rglob("*") if path.is_file()] == []
    assert clinic.prepare().finished
