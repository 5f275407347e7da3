"""A private round of averaging that is asked for again gets the same answer, and costs nothing again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_silo import SPEC, Node, policy_file, settings_of

from fedsynth.diffusion import initial_unet
from fedsynth.messages import TrainRequest, transport
from fedsynth.privacy.spending import read_account

PRIVATE = {"train_steps": 400, "num_rounds": 3, "dp_epsilon": 1.0, "dp_steps": 3, "dp_multiplicity": 1}


@pytest.fixture
def node(tmp_path: Path, image_folder: Path) -> Node:
    """A real silo of ten images."""
    settings = settings_of(tmp_path, strategy="fedavg", dp_sampling_rate=1.0, **PRIVATE)
    return Node(settings, SPEC, data_path=str(image_folder), policy_path=policy_file(tmp_path, count_noise=1.0))


def request_of(node: Node, **changes: object) -> TrainRequest:
    arrays = transport.encode_tensors(initial_unet(node.config, node.spec).state_dict())
    return replace(TrainRequest(arrays=arrays, spec=node.spec, server_round=1, steps=1), **changes)


def weights(node: Node, request: TrainRequest) -> dict[str, torch.Tensor]:
    return transport.decode_tensors(node.ask(request).arrays)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def trainings(node: Node) -> int:
    """How many rounds the account has."""
    (path,) = Path(str(node.context.node_config["state-path"])).rglob("privacy.jsonl")
    with path.open("rb") as file:
        return sum(one.what == "training" for one in read_account(file).spendings)


def test_the_last_round_is_told_again_and_no_other(node: Node) -> None:
    first = weights(node, request_of(node))
    # After a restart of the silo and in another run of Flower, too: a run that continues is a new one to it.
    assert same(first, weights(node.again(), request_of(node)))
    assert trainings(node) == 1
    following = request_of(node, server_round=2, first_step=1)
    second = weights(node, following)
    assert trainings(node) == 2
    assert same(second, weights(node, following))
    (kept,) = Path(str(node.context.node_config["state-path"])).rglob("private-round/*")
    assert not same(first, weights(node, request_of(node))), "an earlier one is made anew, and costs"
    assert trainings(node) == 3
    assert not kept.exists(), "one is kept"


def test_another_question_or_damage_is_a_round_of_its_own(node: Node) -> None:
    first = weights(node, request_of(node))
    state = initial_unet(node.config, node.spec).state_dict()
    state["conv_out.bias"] = state["conv_out.bias"] + 1e-3
    others = [request_of(node, proximal_mu=0.1), request_of(node, arrays=transport.encode_tensors(state))]
    for number, other in enumerate(others, start=2):
        assert not same(first, weights(node, other))
        assert trainings(node) == number
    (kept,) = Path(str(node.context.node_config["state-path"])).rglob("private-round/*")
    kept.write_bytes(kept.read_bytes()[:-4])
    node.ask(others[1])
    assert trainings(node) == 4
