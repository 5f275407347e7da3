"""Every number that leaves a silo in a private run, and why it may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from one_silo import Node, epsilon_request, evaluate_request, sample_request, simulated
from real_silos import real_settings, write_silos
from summed_rounds import TINY, LostError, after_rounds, begin

from clients import self_check, training
from fedsynth.diffusion import TrainingState, initial_unet
from fedsynth.messages import (
    DescribeRequest,
    GradientRequest,
    PrepareRequest,
    Request,
    StatisticsRequest,
    TrainRequest,
    UploadRequest,
    transport,
)
from fedsynth.privacy.dp_training import mechanism_of
from fedsynth.privacy.sums import SecretKeys

PRIVATE: dict[str, Any] = {
    "train_steps": 400,
    "dp_epsilon": 1.0,
    "dp_steps": 3,
    "dp_multiplicity": 1,
    "dp_sampling_rate": 1.0,
}
NAMED = "who answers: no image decides it"
CLOCK = "time and progress: no claim is made about what a stopwatch learns"
COUNTED = "geometric noise of its own, accounted for beside the training"
TRAINED = "follows from weights that DP-SGD made, and from the question"
JUSTIFIED = {
    "protocol": NAMED,
    "version": NAMED,
    "partition-id": NAMED,
    "silo-name": NAMED,
    "seconds": CLOCK,
    "num-examples": f"images: {COUNTED}; of answers to samples, how many were asked about",
    "label-counts": COUNTED,
    "steps": "dp-steps, or how many of them are done: the configuration's, and the clock's",
    "finished": CLOCK,
    "train-seconds": CLOCK,
    "packed": TRAINED,
}
"""Field of an answer -> why it may leave the silo."""


def numbers_in(node: Node, request: Request[Any]) -> set[str]:
    """Fields of the message that a silo answers with."""
    return fields_of(node.send(request))


def fields_of(message: Message) -> set[str]:
    """Fields of an answer; an empty list says nothing."""
    assert not message.has_error(), message.error.reason
    found = set()
    for name, record in message.content.items():
        if name in message.content.array_records:
            found.add(name)
        else:
            found |= {key for key, value in record.items() if value != []}
    return found


def train_request(node: Node, **changes: Any) -> TrainRequest:
    arrays = transport.encode_tensors(initial_unet(node.config, node.spec).state_dict())
    return replace(TrainRequest(arrays=arrays, spec=node.spec, server_round=1, steps=2), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Node:
    node = simulated(tmp_path_factory.mktemp("silo"), **PRIVATE)
    node.ask(PrepareRequest(spec=node.spec, train_seconds=1000.0, private=True))
    return node


def test_every_number_that_leaves_a_silo_is_justified(trained: Node, tmp_path: Path) -> None:
    spec = trained.spec
    slow = simulated(tmp_path, **PRIVATE)
    told = {
        "counted": numbers_in(trained, PrepareRequest(spec=spec)),
        "under way": numbers_in(slow, PrepareRequest(spec=spec, train_seconds=1e-9, private=True)),
        "finished": numbers_in(trained, PrepareRequest(spec=spec, train_seconds=10.0, private=True)),
        "epsilon": numbers_in(trained, epsilon_request()),
        "sample": numbers_in(trained, sample_request(trained, [0, 1], [0, 1])),
        "upload": numbers_in(trained, UploadRequest(spec=spec)),
        "train": numbers_in(trained, train_request(trained)),
    }
    for asked, fields in told.items():
        assert fields <= JUSTIFIED.keys(), asked
    assert set.union(*told.values()) == JUSTIFIED.keys() - {"silo-name"}, "real silos have names"


def test_the_check_of_the_own_model_looks_at_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(eps: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, bound: float, noise: torch.Tensor | None) -> None:
        seen.append((len(x_t), noise))

    monkeypatch.setattr(self_check, "fault_of_own", note)
    monkeypatch.delattr(self_check, "known_images")
    node = simulated(tmp_path, **PRIVATE, secure_aggregation=True)
    answer = node.ask(PrepareRequest(spec=node.spec, train_seconds=1000.0, private=True))
    assert answer.finished
    told = sum(count > 0 for count in answer.label_counts)
    assert seen == [(self_check.SAMPLES_PER_CLASS * told, None)] * 4


SUMMED: dict[str, Any] = {**PRIVATE, "strategy": "dp-sum"}
MASKED = {
    "masked": "uniform on all numbers but for the sum over silos, whose noise is accounted for",
    "sealed": "encrypted for another silo",
    "commitment": "a fingerprint of a random seed",
    "confirmations": "fingerprints of random seeds",
    "sum-keys": "public keys: no image decides them",
    "signature": "of the list of silos that answered",
    "seeds": "random: they open what masks the sum, once it is known whose it is",
    "shares": "parts of random seeds of silos that were lost",
}


def gradient_request(node: Node, **changes: Any) -> GradientRequest:
    """A question to this silo and two others, whose keys a simulated one believes."""
    own = node.ask(PrepareRequest(spec=node.spec)).sum_keys
    assert own is not None
    keys = {"silo-0": SecretKeys.generate().public.text, "silo-1": own, "silo-2": SecretKeys.generate().public.text}
    arrays = transport.encode_tensors(initial_unet(node.config, node.spec).state_dict())
    request = GradientRequest(
        arrays=arrays,
        spec=node.spec,
        server_round=1,
        norm=10_000,
        run_token="run",
        attempt="first",
        participants=tuple(keys),
        keys=tuple(keys.values()),
        weights=torch.full((3, 1), 1 / 3),
    )
    return replace(request, **changes)


def test_of_a_summed_step_only_masked_numbers_leave_a_silo(tmp_path: Path) -> None:
    node = simulated(tmp_path, **SUMMED)
    request = gradient_request(node)
    told = numbers_in(node, PrepareRequest(spec=node.spec)) | numbers_in(node, request)
    assert told <= JUSTIFIED.keys() | MASKED.keys()
    later = gradient_request(node, server_round=2)
    answer = node.ask(later)
    assert answer.num_examples == 0, "not how many images were drawn"
    # Masks are uniform on 32 bits; noise and gradients are far smaller.
    assert answer.masked.double().std() == pytest.approx(2**32 / 12**0.5, rel=0.1)
    assert "the noise is for dp-steps = 3 in all" in node.refusal(replace(later, server_round=4))
    few = ArrayRecord({name: array for name, array in request.arrays.items() if "conv_in" not in name})
    assert "weights do not fit the silo's network" in node.refusal(replace(later, server_round=3, arrays=few))


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("masked_train", {"strategy": "fedavg", "num_rounds": 2, "sampling_steps": 2}),
        (
            "masked",
            {
                "strategy": "dfd",
                "dfd_rounds": 2,
                "weights": "constant",
                "few_holders": "pooled",
                "max_silo_weight": 0.5,
            },
        ),
    ],
)
def test_of_a_private_sum_that_a_silo_leaves_only_masked_numbers_are_told(
    kind: str, method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train-steps", "num-rounds", "sampling-steps"):
        monkeypatch.delitem(TINY, name)

    def lose(asked: str, silo: int, _: Message) -> None:
        if asked == f"query.{kind}" and silo == 3:
            raise LostError

    private = {key: value for key, value in PRIVATE.items() if key != "train_steps"}
    run, grid = begin(tmp_path, lose, **{**private, **method, "secure_aggregation": True})
    after_rounds(run)
    answers = [(asked, answer) for asked, _, answer in grid.crossed if not answer.has_error()]
    assert {asked for asked, _ in answers} == {f"query.{name}" for name in ("prepare", kind, "agree", "reveal")}
    for asked, answer in answers:
        assert fields_of(answer) <= JUSTIFIED.keys() | MASKED.keys(), asked


def test_a_real_silo_describes_its_format_which_is_said_not_to_be_covered(tmp_path: Path) -> None:
    images = write_silos(tmp_path / "images", {"north": (0, 1)})["north"]
    settings = real_settings(tmp_path, **{**PRIVATE, "strategy": "pooled"})
    node = Node(settings, simulated(tmp_path).spec, data_path=str(images), silo_name="north")
    described = numbers_in(node, DescribeRequest()) - JUSTIFIED.keys()
    assert described == {"classes", "image-size", "image-channels", "policy", "role"}
    page = (Path(__file__).parents[2] / "docs" / "private.md").read_text(encoding="utf-8")
    assert "| its name, class names, image size, grey or colour | not covered |" in page


def test_gradients_are_told_in_runs_that_add_noise_to_their_sum_only(tmp_path: Path) -> None:
    request = gradient_request(simulated(tmp_path, **SUMMED))
    other = simulated(tmp_path, **PRIVATE, strategy="pooled")
    assert "gradients are told in runs of strategy = 'dp-sum'" in other.refusal(request)


def test_counts_of_simulated_silos_are_noisy(trained: Node) -> None:
    answer = trained.ask(PrepareRequest(spec=trained.spec))
    plain = simulated(Path(trained.config.run.state_dir), train_steps=4)
    exact = plain.ask(PrepareRequest(spec=plain.spec))
    assert answer.label_counts != exact.label_counts
    assert answer.num_examples == sum(answer.label_counts)


def test_rounds_have_noise_for_all_of_them_and_no_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = simulated(tmp_path, **PRIVATE, strategy="fedprox", num_rounds=2)
    seen = []

    def note(state: TrainingState, images: Any, labels: torch.Tensor, training: Any, steps: int, **rest: Any) -> None:
        seen.append((training.mechanism, steps, state.first_step, rest["proximal_mu"], len(images)))

    monkeypatch.setattr(training, "train_privately", note)
    node.ask(train_request(node, steps=1, first_step=2, proximal_mu=0.5))
    assert seen == [(mechanism_of(node.config), 1, 2, 0.5, 30)]
    assert "2 steps after 2: the noise is for dp-steps = 3 in all" in node.refusal(train_request(node, first_step=2))
    assert len(seen) == 1


def test_delta_above_one_in_all_images_is_refused(tmp_path: Path) -> None:
    node = simulated(tmp_path, **PRIVATE, dp_delta=0.5)
    said = node.refusal(PrepareRequest(spec=node.spec, train_seconds=10.0, private=True))
    assert "dp-delta = 0.5: must be <= 1 / images of a silo, and this one has more than 2" in said
    assert "dp-delta = 0.5" in node.refusal(train_request(node))


def test_pretrained_model_has_no_place_in_it(tmp_path: Path) -> None:
    node = simulated(tmp_path, **PRIVATE)
    node.context.node_config["model-path"] = str(tmp_path)
    assert "nobody here knows how private that model is" in node.refusal(PrepareRequest(spec=node.spec))


def test_measures_of_real_images_are_not_told(tmp_path: Path) -> None:
    node = simulated(tmp_path, **PRIVATE)
    for request in (evaluate_request(), StatisticsRequest(extractor="random-features", spec=node.spec)):
        assert "dp-epsilon = 1.0: measures of real images are outside of it" in node.refusal(request)
