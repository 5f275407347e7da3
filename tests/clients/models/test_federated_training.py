"""Rounds in which only parts of the network travel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_silo import Node, simulated

from fedsynth.data import load_federation
from fedsynth.diffusion import (
    PARTS,
    TrainingState,
    draw_initial_noise,
    initial_unet,
    make_scheduler,
    noise_predictor,
    sample,
    select_parts,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.messages import wire
from fedsynth.seeding import make_generator

Weights = dict[str, torch.Tensor]
STEPS = 2


def is_decoder(name: str) -> bool:
    return name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))


def initial(node: Node) -> Weights:
    return {name: tensor.clone() for name, tensor in initial_unet(node.config, node.spec).state_dict().items()}


def plain_round(node: Node, partition: int, weights: Weights, server_round: int, mu: float = 0.0) -> Weights:
    """One silo's round, from and to a whole state dict."""
    unet = initial_unet(node.config, node.spec)
    unet.load_state_dict(weights)
    silo = load_federation(node.config).silo(partition, node.config).train
    generator = make_generator(node.config.run.seed, "federated-training", f"silo-{partition}", server_round)
    state = TrainingState(unet, node.config.training, generator)
    pixels, labels = to_model_range(silo.images), torch.from_numpy(silo.labels)
    train(state, pixels, labels, node.config.training, node.config.diffusion, STEPS, proximal_mu=mu)
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def ask(node: Node, weights: Weights, server_round: int, parts: tuple[str, ...] = ("decoder",)) -> Weights:
    """A round with a silo that has just been restarted: only its disk remembers."""
    return node.again().tensors(
        wire.TRAIN,
        wire.encode_tensors(weights),
        server_round=server_round,
        steps=STEPS,
        run_token="run-1",
        report_parts=list(parts),
    )


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def personal_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("personal/*/*")}


def test_three_rounds_one_missed_are_the_plain_simulation(tmp_path: Path) -> None:
    nodes = {partition: simulated(tmp_path, partition) for partition in (0, 1)}
    whole = {partition: initial(node) for partition, node in nodes.items()}
    decoder = {name: tensor for name, tensor in whole[0].items() if is_decoder(name)}
    for server_round, present in ((1, (0, 1)), (2, (0,)), (3, (0, 1))):
        answers = {partition: ask(nodes[partition], decoder, server_round) for partition in present}
        for partition in present:
            whole[partition] = plain_round(nodes[partition], partition, whole[partition] | decoder, server_round)
            expected = {name: tensor for name, tensor in whole[partition].items() if is_decoder(name)}
            assert_equal(answers[partition], expected)
        decoder = {name: sum(a[name] for a in answers.values()) / len(answers) for name in decoder}
    assert sorted(personal_files(tmp_path)) == [
        f"state/silo-{partition}/personal/run-1/round-0000{number}.safetensors"
        for partition, number in ((0, 2), (0, 3), (1, 1), (1, 3))
    ]


def test_round_asked_twice_gives_equal_bits(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    decoder = select_parts(initial(node), ["decoder"])
    for server_round in (1, 2, 3):
        first = ask(node, decoder, server_round)
        files = personal_files(tmp_path)
        assert_equal(ask(node, decoder, server_round), first)
        assert personal_files(tmp_path) == files
        decoder = first


def test_what_stays_at_home_is_exact_even_if_half_precision_travels(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("parts", [("encoder",), ("decoder", "bottleneck"), ()])
def test_all_received_and_some_reported(parts: tuple[str, ...], tmp_path: Path) -> None:
    node = simulated(tmp_path)
    weights = initial(node)
    everything = node.tensors(wire.TRAIN, wire.encode_tensors(weights), server_round=1, steps=STEPS)
    assert_equal(everything, plain_round(node, 1, weights, 1))
    assert_equal(ask(node, weights, 1, parts), select_parts(everything, parts))
    assert not (tmp_path / "state").exists()


def test_metrics_of_a_partial_round_are_those_of_a_whole_one(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    weights, partial = initial(node), {"run_token": "r", "report_parts": ["decoder"]}
    decoder = wire.encode_tensors(select_parts(weights, ["decoder"]))
    whole = node.metrics(wire.TRAIN, wire.encode_tensors(weights), server_round=1, steps=STEPS)
    part = node.metrics(wire.TRAIN, decoder, server_round=1, steps=STEPS, **partial)
    assert whole.keys() == part.keys() == {"num-examples", "loss", "seconds"}
    assert (whole["num-examples"], whole["loss"]) == (part["num-examples"], part["loss"])


def test_proximal_term_is_asked_for_by_the_server(tmp_path: Path) -> None:
    node = simulated(tmp_path, learning_rate=2e-3)
    weights = initial(node)
    record = wire.encode_tensors(weights)
    answers = [
        node.tensors(wire.TRAIN, record, server_round=1, steps=STEPS, **config)
        for config in ({}, {"proximal_mu": 0}, {"proximal_mu": 20.0})
    ]
    assert_equal(answers[0], plain_round(node, 1, weights, 1))
    assert_equal(answers[1], answers[0])
    assert_equal(answers[2], plain_round(node, 1, weights, 1, mu=20.0))
    assert not torch.equal(answers[2]["conv_in.weight"], answers[0]["conv_in.weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_token": "../silo-2"}, "UserError: run-token = '../silo-2': must be letters"),
        ({"run_token": ""}, "UserError: run-token = '': must be letters"),
        ({"report_parts": ["decoder", "head"]}, "UserError: unknown part 'head'"),
        ({"report_parts": "decoder"}, "UserError: report-parts = 'decoder': must be a list of parts"),
        ({"proximal_mu": "strong"}, "ValueError: proximal-mu = 'strong': must be a number"),
    ],
)
def test_unusable_request_is_refused_and_writes_nothing(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    node = simulated(tmp_path)
    config = {"server_round": 1, "steps": STEPS, "run_token": "run-1", "report_parts": ["decoder"], **changes}
    record = wire.encode_tensors(select_parts(initial(node), ["decoder"]))
    assert node.ask(wire.TRAIN, record, **config).error.reason.startswith(f"silo-1: {said}")
    assert not (tmp_path / "state").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    node, wider = simulated(tmp_path), simulated(tmp_path, block_out_channels="8,16")
    for weights in (initial(wider), select_parts(initial(wider), ["decoder"])):
        answer = node.ask(wire.TRAIN, wire.encode_tensors(weights), server_round=1, steps=1, run_token="run-1")
        assert answer.error.reason.startswith("silo-1: UserError: weights do not fit the silo's network (layer '")


def test_samples_of_the_federated_model_with_the_silo_s_own_parts(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    start = initial(node)
    first = ask(node, select_parts(start, ["decoder"]), 1)
    encoder = plain_round(node, 1, start, 1)
    ask(node, first, 2)
    received = {name: tensor * 1.5 for name, tensor in first.items()}
    numbers, labels = torch.tensor([2, 3, 11]), torch.tensor([0, 9, 4])
    arrays = wire.encode_tensors({wire.NUMBERS: numbers, wire.LABELS: labels})
    config = {"run_token": "run-1", "server_round": 1}
    got = node.again().tensors(wire.SAMPLE, arrays, wire.encode_tensors(received), sampler="ddpm", **config)

    unet = initial_unet(node.config, node.spec)
    unet.load_state_dict(encoder | received)
    noise = draw_initial_noise(0, 20, (1, 8, 8))[numbers]
    scheduler, generator = make_scheduler(node.config.diffusion, 3), make_generator(0, "sampling", "silo-1")
    expected = to_uint8(sample(noise_predictor(unet), scheduler, noise, labels, generator))
    np.testing.assert_array_equal(got[wire.IMAGES].numpy(), expected)
    assert torch.equal(got[wire.NUMBERS], numbers)
    later = node.tensors(
        wire.SAMPLE, arrays, wire.encode_tensors(received), sampler="ddpm", run_token="run-1", server_round=9
    )
    assert not torch.equal(later[wire.IMAGES], got[wire.IMAGES])


def test_federated_samples_leave_the_own_model_s_as_they_were(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    node.metrics(wire.PREPARE, train_seconds=100.0)
    arrays = wire.encode_tensors({wire.NUMBERS: torch.arange(4), wire.LABELS: torch.arange(4)})
    own = node.tensors(wire.SAMPLE, arrays, sampler="ddpm")[wire.IMAGES]
    whole = wire.encode_tensors(initial(node))
    federated = node.tensors(wire.SAMPLE, arrays, whole, sampler="ddpm", server_round=1)[wire.IMAGES]
    assert not torch.equal(federated, own)
    assert torch.equal(node.tensors(wire.SAMPLE, arrays, sampler="ddpm")[wire.IMAGES], own)


def test_silo_without_a_part_in_the_run_has_nothing_to_sample(tmp_path: Path) -> None:
    node = simulated(tmp_path)
    arrays = wire.encode_tensors({wire.NUMBERS: torch.arange(4), wire.LABELS: torch.arange(4)})
    weights = wire.encode_tensors(select_parts(initial(node), PARTS[1:]))
    answer = node.ask(wire.SAMPLE, arrays, weights, sampler="ddpm", run_token="run-1", server_round=3)
    assert "silo-1: UserError: server-round = 3" in answer.error.reason
