"""A round whose weights travel in shards, at the silo: the answers are those of a round whose weights travel whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_silo import Node, policy_file, settings_of, simulated

from fedsynth.diffusion import initial_unet
from fedsynth.message_size import shards_of
from fedsynth.messages import GetShardRequest, PutShardRequest, TrainRequest, TrainShardsRequest, transport
from fedsynth.sealed_tensors import digest_of_tensors
from fedsynth.spec import ImageSpec

Model = dict[str, torch.Tensor]
TOKEN = "run-1"


class Shards:
    """Weights in shards, and what a server asks about them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.weights: Model = initial_unet(node.config, node.spec).state_dict()
        cut = shards_of({name: tuple(layer.shape) for name, layer in self.weights.items()}, 0.02)
        self.shards = [{name: self.weights[name] for name in names} for names in cut]
        assert len(self.shards) > 2

    def put(self, shard: int, tensors: Model | None = None, **changed: Any) -> PutShardRequest:
        given = transport.encode_tensors(self.shards[shard] if tensors is None else tensors)
        facts: dict[str, Any] = {"run_token": TOKEN, "server_round": 1, "spec": self.node.spec, **changed}
        return PutShardRequest(arrays=given, shard=shard, **facts)

    def train(self, **changed: Any) -> TrainShardsRequest:
        digests = tuple(map(digest_of_tensors, self.shards))
        facts = {"run_token": TOKEN, "server_round": 1, "steps": 2, "spec": self.node.spec, "digests": digests}
        return TrainShardsRequest(**{**facts, **changed})

    def get(self, shard: int, server_round: int = 1) -> GetShardRequest:
        return GetShardRequest(run_token=TOKEN, server_round=server_round, shard=shard)

    def put_all(self, **changed: Any) -> None:
        for shard, tensors in enumerate(self.shards):
            assert self.node.ask(self.put(shard, **changed)).sha256 == digest_of_tensors(tensors)

    @property
    def files(self) -> list[Path]:
        state = Path(str(self.node.context.run_config["state-dir"]))
        return sorted(path for path in state.rglob("shard-*") if path.is_file())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_of_an_answer_are_the_answer_bit_for_bit_and_leave_nothing(dtype: str, tmp_path: Path) -> None:
    node = simulated(tmp_path, strategy="fedprox", wire_dtype=dtype)
    given = Shards(node)
    steps: dict[str, Any] = {"spec": node.spec, "server_round": 1, "steps": 2, "proximal_mu": 0.5}
    whole = node.ask(TrainRequest(arrays=transport.encode_tensors(given.weights), **steps))
    given.put_all()
    assert len(given.files) == len(given.shards)
    told = node.ask(given.train(proximal_mu=0.5))
    assert (told.num_examples, told.loss) == (whole.num_examples, whole.loss)
    found: dict[str, Any] = {}
    for shard, digest in enumerate(told.digests):
        arrays = node.ask(given.get(shard)).arrays
        assert digest_of_tensors(transport.peek_tensors(arrays)) == digest
        found |= arrays.items()
    assert {name: array.data for name, array in found.items()} == {n: a.data for n, a in whole.arrays.items()}
    assert not (Path(str(node.context.run_config["state-dir"])) / "silo-1" / "shards" / TOKEN).exists()
    assert "shard 0 of round 1 is not here: it was fetched already" in node.refusal(given.get(0))


def test_bad_shards_are_refused_by_name_before_any_work(tmp_path: Path) -> None:
    node = simulated(tmp_path, strategy="fedavg")
    given = Shards(node)
    name, layer = next(iter(given.shards[0].items()))
    refused = node.refusal(given.put(0, {"stranger": layer}))
    assert "shard 0 holds a layer 'stranger'" in refused
    assert "none of that name" in refused
    assert f"holds a layer '{name}' of shape (99, 99)" in node.refusal(given.put(0, {name: torch.zeros(99, 99)}))
    assert given.files == []
    assert "weights of round 1: shard 0 is not there" in node.refusal(given.train())
    given.put_all()
    # The same shard again is no other one; another one is found when it is to be trained on.
    node.ask(given.put(0))
    node.ask(given.put(1, {name: layer + 1 for name, layer in given.shards[1].items()}))
    assert "weights of round 1: shard 1 is another one: SHA-256" in node.refusal(given.train())
    assert "shard 0 of round 1 is not here" in node.refusal(given.get(0))
    node.ask(given.put(1))
    digests = given.train().digests
    assert "is in no shard of round 1" in node.refusal(given.train(digests=digests[:-1]))
    extra = len(digests)
    node.ask(PutShardRequest(**{**given.put(0).__dict__, "shard": extra}))
    assert "is in two shards" in node.refusal(given.train(digests=(*digests, digests[0])))
    assert "shard 0 is not there" in node.refusal(given.train(server_round=2))


def test_a_server_cannot_fill_the_disk_with_copies_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.shards.HEADERS_BYTES", 0)
    node = simulated(tmp_path, strategy="fedavg")
    given = Shards(node)
    request = given.put(0)
    answers = [node.send(PutShardRequest(**{**request.__dict__, "shard": shard})) for shard in range(40)]
    refused = [answer.error.reason for answer in answers if answer.has_error()]
    assert refused
    assert all("with those before it more than all weights of the run's network" in reason for reason in refused)
    most = 8 * sum(layer.numel() for layer in given.weights.values())
    assert sum(path.stat().st_size for path in given.files) <= most + 10_000


def test_a_new_round_replaces_what_was_left_of_another(tmp_path: Path) -> None:
    given = Shards(simulated(tmp_path, strategy="fedavg"))
    given.put_all()
    given.node.ask(given.put(0, server_round=2))
    assert [path.parents[1].name for path in given.files] == ["round-00002"]


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Path) -> Callable[..., Shards]:
    def open_clinic(**lines: Any) -> Shards:
        policy = policy_file(tmp_path / "policy", **lines)
        settings = settings_of(tmp_path, strategy="fedavg")
        spec = ImageSpec(1, 8, ("even", "odd"))
        return Shards(Node(settings, spec, data_path=str(image_folder), silo_name="clinic", policy_path=policy))

    return open_clinic


def test_a_policy_that_forbids_training_forbids_shards(clinic: Callable[..., Shards]) -> None:
    strict = clinic(answers=("describe", "prepare", "epsilon"))
    for request in (strict.put(0), strict.train(), strict.get(0)):
        assert strict.node.refusal(request).endswith("'train' is not answered here")
    small = clinic(network_parameters=10)
    assert "line 'network-parameters = 10': the run's network has" in small.node.refusal(small.put(0))
    few = clinic(optimiser_steps_per_run=3)
    few.put_all()
    few.node.ask(few.train(steps=2))
    refused = few.node.refusal(few.train(steps=2))
    assert refused.endswith("line 'optimiser-steps-per-run = 3': 2 more asked for, 2 answered in this run")
