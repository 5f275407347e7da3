"""Rounds in which only parts of the network travel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_silo import Node, drawn_images, sample_request, simulated

from fedsynth.data import load_federation
from fedsynth.diffusion import TrainingState, initial_unet, noise_predictor, select_parts, to_model_range, train
from fedsynth.messages import TrainRequest, transport
from fedsynth.seeding import make_generator

Weights = dict[str, torch.Tensor]
STEPS = 2


def is_decoder(name: str) -> bool:
    return name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))


def initial(node: Node) -> Weights:
    return {name: tensor.clone() for name, tensor in initial_unet(node.config, node.spec).state_dict().items()}


def trained(node: Node, partition: int, weights: Weights, server_round: int, mu: float = 0.0) -> TrainingState:
    """One silo's round, with a fresh optimiser."""
    unet = initial_unet(node.config, node.spec)
    unet.load_state_dict(weights)
    silo = load_federation(node.config).silo(partition, node.config).train
    generator = make_generator(node.config.run.seed, "federated-training", f"silo-{partition}", server_round)
    total, first_step = node.config.training.train_steps, STEPS * (server_round - 1)
    state = TrainingState(unet, node.config.recipe, generator, total, first_step)
    pixels, labels = to_model_range(silo.images), torch.from_numpy(silo.labels)
    train(state, pixels, labels, node.config.training, STEPS, proximal_mu=mu)
    return state


def plain_round(node: Node, partition: int, weights: Weights, server_round: int, mu: float = 0.0) -> Weights:
    """One silo's round, from and to a whole state dict."""
    return trained(node, partition, weights, server_round, mu).unet.state_dict()


def train_request(node: Node, weights: Weights, server_round: int = 1, **changes: Any) -> TrainRequest:
    given = {"run_token": "run-1", "report_parts": ("decoder",), "first_step": STEPS * (server_round - 1), **changes}
    arrays = transport.encode_tensors(weights)
    return TrainRequest(arrays=arrays, spec=node.spec, server_round=server_round, steps=STEPS, **given)


def ask(node: Node, weights: Weights, server_round: int = 1, **changes: Any) -> Weights:
    """A round with a silo that has just been restarted: only its disk remembers."""
    return transport.decode_tensors(node.again().ask(train_request(node, weights, server_round, **changes)).arrays)


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def personal_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("personal/*/*")}


def test_three_rounds_one_missed_one_repeated_are_the_plain_simulation(tmp_path: Path) -> None:
    nodes = {partition: simulated(tmp_path, partition, train_steps=3 * STEPS) for partition in (0, 1)}
    whole = {partition: initial(node) for partition, node in nodes.items()}
    decoder = {name: tensor for name, tensor in whole[0].items() if is_decoder(name)}
    for server_round, present in ((1, (0, 1)), (2, (0,)), (3, (0, 1))):
        answers = {partition: ask(nodes[partition], decoder, server_round) for partition in present}
        for partition in present:
            whole[partition] = plain_round(nodes[partition], partition, whole[partition] | decoder, server_round)
            expected = {name: tensor for name, tensor in whole[partition].items() if is_decoder(name)}
            assert_equal(answers[partition], expected)
        files = personal_files(tmp_path)
        assert_equal(ask(nodes[0], decoder, server_round), answers[0])
        assert personal_files(tmp_path) == files
        decoder = {name: sum(a[name] for a in answers.values()) / len(answers) for name in decoder}
    assert sorted(personal_files(tmp_path)) == [
        f"state/silo-{partition}/personal/run-1/round-0000{number}.safetensors"
        for partition, number in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 3))
    ]


def test_personal_tensors_are_exact_even_if_half_precision_travels(tmp_path: Path) -> None:
    node = simulated(tmp_path, wire_dtype="float16")
    start = initial(node)
    decoder = {name: tensor.half().float() for name, tensor in start.items() if is_decoder(name)}
    whole = plain_round(node, 1, start | decoder, 1)
    answered = ask(node, decoder, 1)
    assert_equal(answered, {name: tensor.half().float() for name, tensor in whole.items() if is_decoder(name)})
    second = plain_round(node, 1, whole | answered, 2)
    assert_equal(
        ask(node, answered, 2), {name: tensor.half().float() for name, tensor in second.items() if is_decoder(name)}
    )


def test_all_received_and_some_reported_under_the_server_s_proximal_term(tmp_path: Path) -> None:
    node = simulated(tmp_path, learning_rate=2e-3)
    weights = initial(node)
    plain, pulled = plain_round(node, 1, weights, 1), plain_round(node, 1, weights, 1, mu=20.0)
    assert not torch.equal(pulled["conv_in.weight"], plain["conv_in.weight"])
    assert_equal(ask(node, weights, report_parts=None, proximal_mu=20.0), pulled)
    some = ("decoder", "bottleneck")
    assert_equal(ask(node, weights, report_parts=some, run_token=None), select_parts(plain, some))
    assert not (tmp_path / "state").exists()
    answer = node.ask(train_request(node, weights))
    state = trained(node, 1, weights, 1)
    assert answer.loss == pytest.approx(np.mean(state.losses))
    assert answer.num_examples == len(load_federation(node.config).silo(1, node.config).train)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_token": "../silo-2"}, "MessageError: run-token = '../silo-2': must be text that matches"),
        ({"run_token": None}, "UserError: run-token = '': must be letters"),
        ({"report_parts": ("decoder", "head")}, "UserError: unknown part 'head'"),
        ({"proximal_mu": -1.0}, "MessageError: proximal-mu = -1.0: must be finite and >= 0"),
    ],
)
def test_unusable_request_is_refused_and_writes_nothing(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    node = simulated(tmp_path)
    request = train_request(node, select_parts(initial(node), ["decoder"]), **changes)
    assert node.refusal(request).startswith(f"silo-1: {said}")
    assert not (tmp_path / "state").exists()


def test_samples_of_the_federated_model_with_the_silo_s_own_parts(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    start = initial(node)
    first = ask(node, select_parts(start, ["decoder"]), 1)
    encoder = plain_round(node, 1, start, 1)
    ask(node, first, 2)
    received = {name: tensor * 1.5 for name, tensor in first.items()}
    labels, numbers = [0, 9, 4], [2, 3, 11]
    request = sample_request(
        node, labels, numbers, weights=transport.encode_tensors(received), run_token="run-1", server_round=1
    )
    got = node.again().ask(request).images

    unet = initial_unet(node.config, node.spec)
    unet.load_state_dict(encoder | received)
    np.testing.assert_array_equal(
        got.numpy(), drawn_images(node, noise_predictor(unet, node.config.recipe), labels, numbers)
    )
    assert not torch.equal(node.ask(replace(request, server_round=9)).images, got)


def test_federated_samples_leave_the_own_model_s_as_they_were(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    node.prepare()
    request = sample_request(node, [0, 1, 2, 3], [0, 1, 2, 3])
    own = node.ask(request).images
    whole = transport.encode_tensors(initial(node))
    assert not torch.equal(node.ask(replace(request, weights=whole, server_round=1)).images, own)
    assert torch.equal(node.ask(request).images, own)
