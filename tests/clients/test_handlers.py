from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from one_silo import SPEC, Node, settings_of, simulated

import clients.models.local_model
from clients.models.local_model import load_network
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import (
    ClassConditionalDDPMPipeline,
    TrainingState,
    draw_initial_noise,
    early_stopping,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.messages import wire
from fedsynth.seeding import make_generator


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Callable[[str], Path]) -> Node:
    """A silo with a folder, a name and a state folder of its own."""
    path = image_folder("clinic")
    return Node(
        settings_of(tmp_path), SPEC, data_path=str(path), silo_name="clinic", state_path=str(tmp_path / "own-state")
    )


def own_model(node: Node) -> Path:
    return Path(str(node.context.state.config_records["local-model"]["path"]))


def questions(count: int = 5, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(3)), torch.arange(count) % 2


def test_prepare_without_training_says_what_the_silo_holds(clinic: Node, tmp_path: Path) -> None:
    answer = clinic.ask(wire.PREPARE, train_seconds=0.0)
    metrics = dict(answer.content.metric_records[wire.METRICS])
    assert metrics["label-counts"] in ([5, 4], [6, 3]), "one image of ten is held out"
    assert metrics["num-examples"] == sum(metrics["label-counts"]) == 9
    assert wire.silo_key(answer) == (0, "clinic")
    assert set(metrics) == {"label-counts", "num-examples"}
    assert not (tmp_path / "own-state").exists()


def test_simulated_silo_answers_with_its_partition(tmp_path: Path) -> None:
    answer = simulated(tmp_path, 2).ask(wire.PREPARE, train_seconds=0.0)
    assert wire.silo_key(answer) == (2, "silo-2")


def test_training_goes_to_the_silo_s_own_state_folder(clinic: Node, tmp_path: Path) -> None:
    metrics = clinic.metrics(wire.PREPARE, train_seconds=100.0)
    assert (metrics["steps"], metrics["finished"]) == (4, 1)
    assert metrics["curve-steps"] == [1.0, 2.0, 3.0, 4.0]
    assert metrics["loss"] == metrics["curve-losses"][-1]
    assert metrics["train-seconds"] > 0
    assert own_model(clinic).parent == tmp_path / "own-state" / "clinic" / "models"
    assert not (tmp_path / "state").exists()
    record = clinic.context.state.config_records["local-model"]
    assert record == {"path": str(own_model(clinic)), "hash": own_model(clinic).name}
    assert not clinic.context.state.array_records


def test_slices_report_progress_until_the_model_is_there(clinic: Node) -> None:
    seen = []
    for _ in range(4):
        metrics = clinic.metrics(wire.PREPARE, train_seconds=1e-9)
        seen.append((metrics["steps"], metrics["finished"], "curve-steps" in metrics))
    assert seen == [(1, 0, False), (2, 0, False), (3, 0, False), (4, 1, True)]


def test_found_model_is_not_trained_again(clinic: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    first = clinic.metrics(wire.PREPARE, train_seconds=100.0)
    monkeypatch.setattr(clients.models.local_model, "train", None)
    again = clinic.again()
    assert again.metrics(wire.PREPARE, train_seconds=100.0) == first
    assert own_model(again) == own_model(clinic)


def test_silo_says_what_share_of_its_samples_are_copies_when_asked(tmp_path: Path) -> None:
    node = simulated(tmp_path, holdout_fraction=0.25)
    metrics = node.metrics(wire.PREPARE, train_seconds=100.0)
    assert 0 <= metrics["copied-share"] <= 1
    assert "copied-share" not in node.again(copy_check=False).metrics(wire.PREPARE, train_seconds=100.0)
    assert node.again().metrics(wire.PREPARE, train_seconds=100.0) == metrics
    few = simulated(tmp_path).metrics(wire.PREPARE, train_seconds=100.0)
    assert "copied-share" not in few, "4 held-out images say nothing"


def test_steps_are_those_taken_when_training_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stopping, "MIN_INTERVAL", 1)
    monkeypatch.setattr(clients.models.local_model, "HeldOutLoss", lambda *_: lambda unet: 1.0)
    node, seen = simulated(tmp_path, train_steps=40), []
    for _ in range(5):
        metrics = node.metrics(wire.PREPARE, train_seconds=1e-9)
        seen.append((metrics["steps"], metrics["finished"]))
    # A check every second step: the first is progress, the next four are not.
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]
    while not (metrics := node.metrics(wire.PREPARE, train_seconds=1e-9))["finished"]:
        pass
    assert (metrics["steps"], metrics["curve-steps"][-1]) == (10, 10.0)


def test_epsilon_is_the_own_network_s_bit_for_bit(clinic: Node) -> None:
    clinic.metrics(wire.PREPARE, train_seconds=100.0)
    x, labels = questions()
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels})
    answer = clinic.ask(wire.EPSILON, record, timestep=421)
    (got,) = wire.decode_tensors(wire.array_record(answer, wire.EPSILON_RECORD)).values()
    assert torch.equal(got, noise_predictor(load_network(own_model(clinic), torch.device("cpu")))(x, 421, labels))
    assert answer.content.metric_records[wire.METRICS]["num-examples"] == 5
    assert answer.content.metric_records[wire.METRICS]["seconds"] > 0
    other = wire.array_record(clinic.ask(wire.EPSILON, record, timestep=5), wire.EPSILON_RECORD)
    assert not torch.equal(wire.decode(other[wire.EPSILON_RECORD]), got)


def test_epsilon_travels_in_the_configured_precision(tmp_path: Path) -> None:
    node = simulated(tmp_path, wire_dtype="float16")
    node.metrics(wire.PREPARE, train_seconds=100.0)
    x, labels = questions()
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels}, "float16")
    answer = node.ask(wire.EPSILON, record, timestep=421)
    (array,) = wire.array_record(answer, wire.EPSILON_RECORD).values()
    exact = noise_predictor(load_network(own_model(node), torch.device("cpu")))(x.half().float(), 421, labels)
    assert array.dtype == "float16"
    assert torch.equal(wire.decode(array), exact.half().float())


def test_samples_are_the_plain_loop_from_the_shared_noise(clinic: Node) -> None:
    clinic.metrics(wire.PREPARE, train_seconds=100.0)
    numbers, labels = torch.tensor([2, 3, 11, 19]), torch.tensor([0, 1, 1, 0])
    record = wire.encode_tensors({wire.NUMBERS: numbers, wire.LABELS: labels})
    got = wire.decode_tensors(wire.array_record(clinic.ask(wire.SAMPLE, record, sampler="ddpm"), wire.ARRAYS))
    noise = draw_initial_noise(0, 20, (1, 8, 8))[numbers]
    predict = noise_predictor(load_network(own_model(clinic), torch.device("cpu")))
    scheduler, generator = make_scheduler(clinic.config.diffusion, 3), make_generator(0, "sampling", "clinic")
    expected = to_uint8(sample(predict, scheduler, noise, labels, generator))
    np.testing.assert_array_equal(got[wire.IMAGES].numpy(), expected)
    assert got[wire.IMAGES].dtype == torch.uint8
    assert torch.equal(got[wire.NUMBERS], numbers)


def test_train_continues_from_the_received_weights_with_a_fresh_optimiser(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    start = initial_unet(RunConfig.from_run_config({**node.context.run_config, "seed": 9}), node.spec)
    record = wire.encode_tensors(start.state_dict())
    answers = [node.ask(wire.TRAIN, record, server_round=round_, steps=3) for round_ in (1, 1, 2)]
    weights = [wire.decode_tensors(wire.array_record(answer, wire.ARRAYS)) for answer in answers]

    silo = load_federation(node.config).silo(1, node.config).train
    state = TrainingState(start, node.config.training, make_generator(0, "federated-training", "silo-1", 1))
    pixels, labels = to_model_range(silo.images), torch.from_numpy(silo.labels)
    losses = train(state, pixels, labels, node.config.training, node.config.diffusion, 3)
    expected = state.unet.state_dict()
    assert all(torch.equal(weights[0][name], value) for name, value in expected.items())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in expected)
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in expected)
    metrics = answers[0].content.metric_records[wire.METRICS]
    assert metrics["num-examples"] == len(silo)
    assert metrics["loss"] == pytest.approx(np.mean(losses))


def test_question_before_the_model_is_there_says_what_must_come_first(clinic: Node) -> None:
    x, labels = questions()
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels, wire.NUMBERS: torch.arange(5)})
    for kind in (wire.EPSILON, wire.SAMPLE, wire.UPLOAD):
        reason = clinic.ask(kind, record, timestep=1, sampler="ddpm").error.reason
        assert reason == "clinic: UserError: this silo has no trained model: 'query.prepare' failed or never came"


def test_label_that_the_model_does_not_know_is_answered_with_an_error(clinic: Node) -> None:
    clinic.metrics(wire.PREPARE, train_seconds=100.0)
    x, _ = questions()
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: torch.full((5,), 7)})
    assert clinic.ask(wire.EPSILON, record, timestep=1).error.reason.startswith("clinic: IndexError")


def test_unusable_folder_is_answered_by_name_and_other_silos_work(clinic: Node, tmp_path: Path) -> None:
    (tmp_path / "ward" / "even").mkdir(parents=True)
    node_config = {"data_path": str(tmp_path / "ward"), "silo_name": "ward"}
    ward = Node(settings_of(tmp_path), SPEC, **node_config)
    reason = ward.ask(wire.PREPARE, train_seconds=0.0).error.reason
    assert reason.startswith("ward: UserError: no images in class folder 'even'")
    assert clinic.metrics(wire.PREPARE, train_seconds=0.0)["num-examples"] == 9


@pytest.mark.parametrize(("seconds", "saving"), [(1e-9, "checkpoint"), (100.0, "model")])
def test_full_disk_is_answered_by_name_and_leaves_nothing_half_written(
    seconds: float,
    saving: str,
    clinic: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full_disk: Callable[..., None],
) -> None:
    with monkeypatch.context() as patched:
        if saving == "checkpoint":
            patched.setattr(torch, "save", full_disk)
        else:
            patched.setattr(ClassConditionalDDPMPipeline, "save_pretrained", full_disk)
        answer = clinic.ask(wire.PREPARE, train_seconds=seconds)
    state = tmp_path / "own-state" / "clinic"
    assert answer.error.reason.startswith(f"clinic: UserError: state folder '{state}': No space left on device: make")
    assert [path for path in (tmp_path / "own-state").rglob("*") if path.is_file()] == []
    assert clinic.metrics(wire.PREPARE, train_seconds=100.0)["finished"] == 1


def test_silos_share_a_process_without_sharing_models(tmp_path: Path) -> None:
    nodes = [simulated(tmp_path, partition) for partition in (0, 1)]
    x, labels = questions()
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels})
    for node in nodes:
        node.metrics(wire.PREPARE, train_seconds=100.0)
    answers = [node.ask(wire.EPSILON, record, timestep=9) for node in [*nodes, *nodes]]
    epsilons = [wire.decode(wire.array_record(a, wire.EPSILON_RECORD)[wire.EPSILON_RECORD]) for a in answers]
    assert torch.equal(epsilons[0], epsilons[2])
    assert torch.equal(epsilons[1], epsilons[3])
    assert not torch.equal(epsilons[0], epsilons[1])


@pytest.mark.parametrize("wire_dtype", ["float32", "float16"])
def test_upload_is_the_averaged_model_on_disk(wire_dtype: str, tmp_path: Path) -> None:
    node = simulated(tmp_path, wire_dtype=wire_dtype)
    node.metrics(wire.PREPARE, train_seconds=100.0)
    answer = node.ask(wire.UPLOAD)
    sent = wire.array_record(answer, wire.ARRAYS)
    on_disk = load_network(own_model(node), torch.device("cpu")).state_dict()
    assert list(sent) == list(on_disk)
    assert {array.dtype for array in sent.values()} == {wire_dtype}
    for name, value in on_disk.items():
        assert torch.equal(wire.peek(sent[name]), value.to(getattr(torch, wire_dtype))), name
    silo = load_federation(node.config).silo(1, node.config).train
    assert dict(wire.metrics(answer)) == {"num-examples": len(silo)}
    state = TrainingState(
        initial_unet(node.config, node.spec), node.config.training, make_generator(0, "local-training", "silo-1")
    )
    pixels, labels = to_model_range(silo.images), torch.from_numpy(silo.labels)
    train(state, pixels, labels, node.config.training, node.config.diffusion, 4)
    raw = state.unet.state_dict()["conv_in.weight"].clone()
    assert torch.equal(on_disk["conv_in.weight"], state.averaged_unet().state_dict()["conv_in.weight"])
    assert not torch.equal(on_disk["conv_in.weight"], raw)


def test_oversampling_silo_trains_another_model(tmp_path: Path) -> None:
    uploads = []
    for oversample in (False, True):
        node = simulated(tmp_path, oversample=oversample)
        node.metrics(wire.PREPARE, train_seconds=100.0)
        uploads.append(node.tensors(wire.UPLOAD)["conv_in.weight"])
    assert not torch.equal(*uploads)


def test_epsilon_of_several_levels_is_that_of_each_bit_for_bit(clinic: Node) -> None:
    clinic.metrics(wire.PREPARE, train_seconds=100.0)
    x, labels = questions(6)
    timesteps = torch.tensor([421, 5, 421, 999, 5, 421])
    record = wire.encode_tensors({wire.SAMPLES: x, wire.LABELS: labels, wire.TIMESTEPS: timesteps})
    answer = clinic.ask(wire.EPSILON, record, question=7)
    (got,) = wire.decode_tensors(wire.array_record(answer, wire.EPSILON_RECORD)).values()
    predict = noise_predictor(load_network(own_model(clinic), torch.device("cpu")))
    for t in (421, 5, 999):
        rows = timesteps == t
        assert torch.equal(got[rows], predict(x[rows], t, labels[rows]))
    assert wire.metrics(answer)["question"] == 7
    assert "timestep" not in wire.metrics(answer)
