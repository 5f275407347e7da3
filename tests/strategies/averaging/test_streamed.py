"""Weights that travel in shards, against the same rounds whose weights travel whole; the silos are made by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from full_disk import full_after
from spoiled_answers import Tamper, failed, spoil
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth import disk
from fedsynth.api.in_process_grid import InProcessGrid
from fedsynth.config import RunConfig, Scalar
from fedsynth.config.types import STREAMED
from fedsynth.errors import RunError, UserError
from fedsynth.message_size import LARGEST_WHOLE, StreamNeeds, refuse_too_large, shards_of, streamed_shards
from fedsynth.messages import (
    DescribeRequest,
    GetShardAnswer,
    GetShardRequest,
    PutShardAnswer,
    PutShardRequest,
    Sender,
    TrainAnswer,
    TrainRequest,
    TrainShardsAnswer,
    TrainShardsRequest,
    transport,
)
from fedsynth.sealed_tensors import digest_of_tensors
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies import build_strategy
from strategies.averaging.base import AveragingStrategy
from strategies.base import Task
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange

Model = dict[str, torch.Tensor]

SPEC = ImageSpec(1, 8, ("even", "odd"))
SILOS = 7
PUT, TRAIN, GET = PutShardRequest.kind, TrainShardsRequest.kind, GetShardRequest.kind
SETTINGS: dict[str, dict[str, Any]] = {
    "krum": {"num-malicious-nodes": 1},
    "multikrum": {"num-malicious-nodes": 1, "num-nodes-to-select": 3},
    "bulyan": {"num-malicious-nodes": 1},
    "fedavg, ema": {"sample-from": "ema", "server-ema-decay": 0.5},
    "fedavg, float16": {"wire-dtype": "float16"},
    "fedyogi, some": {"fraction-train": 0.6},
}


def weights() -> Model:
    """Whole numbers in a shard of their own, and a layer that is larger than a shard."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"z.weight": (3, 4), "z.bias": (3,), "scale": (), "a.weight": (5, 3, 3), "b.bias": (5,)}
    model = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**model, "steps": torch.tensor([4, 9])}


class Silos:
    """What seven silos answer: the weights that they get and some noise, whole or in shards."""

    def __init__(self, dtype: str = "float32") -> None:
        self._dtype = dtype
        self.kept: dict[int, dict[int, Model]] = {}
        self.given: dict[int, dict[int, list[str]]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        silo = int(context.node_config["partition-id"])
        return self._answer(silo, message).to_message(message, Sender.of_partition(silo))

    def _answer(self, silo: int, message: Message) -> Any:
        kept, given = self.kept.setdefault(silo, {}), self.given.setdefault(silo, {})
        match message.metadata.message_type:
            case TrainRequest.kind:
                asked = TrainRequest.from_message(message)
                model = self._trained(silo, asked.server_round, transport.decode_tensors(asked.arrays))
                return TrainAnswer(arrays=transport.encode_tensors(model), num_examples=10 + silo, loss=1 + silo)
            case PutShardRequest.kind:
                put = PutShardRequest.from_message(message)
                kept[put.shard], given[put.shard] = transport.decode_tensors(put.arrays), list(put.arrays)
                return PutShardAnswer(sha256=digest_of_tensors(transport.peek_tensors(put.arrays)))
            case TrainShardsRequest.kind:
                ask = TrainShardsRequest.from_message(message)
                whole = {name: layer for shard in kept.values() for name, layer in shard.items()}
                model = self._trained(silo, ask.server_round, whole)
                self.kept[silo] = {k: {name: model[name] for name in names} for k, names in given.items()}
                digests = tuple(digest_of_tensors(shard) for shard in self.kept[silo].values())
                return TrainShardsAnswer(digests=digests, num_examples=10 + silo, loss=1 + silo)
        get = GetShardRequest.from_message(message)
        arrays = transport.encode_tensors(kept[get.shard])
        return GetShardAnswer(run_token=get.run_token, server_round=get.server_round, shard=get.shard, arrays=arrays)

    def _trained(self, silo: int, server_round: int, model: Model) -> Model:
        generator = make_generator(silo, "noise", server_round)
        changed = {
            name: transport.as_sent(layer + 0.1 * torch.randn(layer.shape, generator=generator), self._dtype)
            if layer.is_floating_point()
            else layer + silo
            for name, layer in sorted(model.items())
        }
        return {name: changed[name] for name in model}


class Run:
    """A strategy between its first round and its last."""

    def __init__(self, folder: Path, strategy: str, shard: float | None, tamper: Tamper = list, **given: Any) -> None:
        settings = {"strategy": strategy, "num-clients": SILOS, "num-rounds": 3, **given}
        if shard is not None:
            settings["max-message-mb"] = shard
        built, config = build_strategy(RunConfig.from_run_config(settings))
        assert isinstance(built, AveragingStrategy)
        self.strategy, self.spool = built, folder / "spool"
        silos = Silos(config.exchange.wire_dtype)
        self.exchange = Exchange(InProcessGrid(silos, config.to_run_config(), SILOS, tamper), 60.0)
        members = [Member(100 + k, f"silo-{k}", 10 + k, [5, 5 + k]) for k in range(SILOS)]
        task = Task(config, SPEC, Census(members), torch.arange(2), spool=self.spool)
        self.arrays = built.start_from(task, transport.encode_tensors(weights()), self.exchange)
        self.done = 0

    def play(self) -> Any:
        self.done += 1
        self.arrays, metrics = self.strategy.run_round(self.done, self.arrays, self.exchange)
        return metrics

    @property
    def weights(self) -> Model:
        return transport.decode_tensors(self.arrays)

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.spool).as_posix() for path in self.spool.rglob("*") if path.is_file())


SHARD = 60e-6
"""Megabytes: 15 numbers in single precision, 30 in half."""


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def state_of(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.strategy.state_dict().items() if name != "run-token"}


@pytest.mark.parametrize("case", [*STREAMED, *(name for name in SETTINGS if "," in name)])
def test_shards_give_the_bits_of_whole_weights(case: str, tmp_path: Path) -> None:
    name, given = case.split(",")[0], SETTINGS.get(case, {})
    whole, sharded = Run(tmp_path / "whole", name, None, **given), Run(tmp_path / "sharded", name, SHARD, **given)
    assert whole.strategy._stream is None
    for number in (1, 2):
        one, other = whole.play(), sharded.play()
        assert {key: one[key] for key in one if key != "client-seconds"} == {
            key: other[key] for key in other if key != "client-seconds"
        }
        assert same(sharded.weights, whole.weights)
        assert list(sharded.weights) == list(whole.weights), "in their order"
        shards = 3 if "float16" in case else 4
        assert sharded.files() == [f"weights-{number:05d}/shard-{k:05d}.safetensors" for k in range(shards)]
    assert same(state_of(sharded), state_of(whole))


def test_layers_are_cut_in_order_and_a_large_one_stands_alone() -> None:
    shapes = {"a": (4,), "b": (2, 3), "c": (100,), "d": (), "e": (9,)}
    assert shards_of(shapes, 40e-6) == [("a", "b"), ("c",), ("d", "e")]
    assert shards_of(shapes, 20e-6, "float16") == [("a", "b"), ("c",), ("d", "e")]
    assert shards_of(shapes, 1.0) == [("a", "b", "c", "d", "e")]


def test_only_large_weights_of_rules_that_take_layers_travel_in_shards() -> None:
    def shards(mb: float = 40e-6, **given: Any) -> int:
        settings = {"strategy": "fedavg", "num-clients": 3, "max-message-mb": mb, **given}
        return len(streamed_shards(RunConfig.from_run_config(settings), {"a": (9,), "b": (9,)}))

    assert (shards(), shards(mb=72e-6), shards(mb=71e-6), shards(strategy="krum")) == (2, 0, 2, 2)
    assert shards(**{"secure-aggregation": True}) == shards(aggregators="silos") == 0
    for plain in ("feddiffuse", "fedddpm", "fedddpm-plus"):
        config = RunConfig.from_run_config({"strategy": plain})
        assert streamed_shards(config, {"a": (10**9,)}) == []
        with pytest.raises(UserError, match=r"weights of 4 GB as one message: must be 2 GB at most. They travel"):
            refuse_too_large(config, {"a": (10**9,)})
        refuse_too_large(config, {"a": (LARGEST_WHOLE // 4,)})


def changed(kind: str, first: int, **fields: Any) -> Tamper:
    """Change fields of what silo-1 answers to the ``first`` message of a kind."""
    types: dict[str, Any] = {PUT: PutShardAnswer, TRAIN: TrainShardsAnswer, GET: GetShardAnswer}

    def change(reply: Message) -> Message:
        answer = types[kind].from_message(reply)
        values = {name: make(getattr(answer, name)) for name, make in fields.items()}
        reply.content = replace(answer, **values).to_message(_SOME, Sender.of_partition(1)).content
        return reply

    return spoil(kind, change, first)


_SOME = DescribeRequest().to_message(101)
"""A question; content alone is taken from its answers."""


def arrays(change: Callable[[Model], Model]) -> Callable[[Any], Any]:
    return lambda record: transport.encode_tensors(change(transport.decode_tensors(record)))


OTHER = "0f" * 32
BAD: dict[str, tuple[Tamper, str]] = {
    "error between shards": (spoil(GET, failed, 2), "silo-1: no power"),
    "error when given": (spoil(PUT, failed, 3), "silo-1: no power"),
    "error in training": (spoil(TRAIN, failed), "silo-1: no power"),
    "arrived as another": (changed(PUT, 1, sha256=lambda _: OTHER), "shard 0 of round 1 arrived there as another one"),
    "replayed": (
        changed(GET, 2, server_round=lambda _: 7, shard=lambda _: 0),
        "shard 0 of round 7, must be shard 1 of round 1",
    ),
    "of another run": (changed(GET, 1, run_token=lambda _: "other"), "shard 0 of round 1 of another run, must be"),
    "foreign": (
        changed(GET, 1, arrays=arrays(lambda model: {name: -layer for name, layer in model.items()})),
        "shard 0 of round 1 is not the one that this silo announced: its SHA-256 is another",
    ),
    "oversized": (
        changed(GET, 1, arrays=arrays(lambda model: {**model, "z.weight": torch.zeros(300, 400)})),
        "layer z.weight has shape (300, 400), not (3, 4)",
    ),
    "in another precision": (
        changed(GET, 1, arrays=arrays(lambda model: {name: layer.double() for name, layer in model.items()})),
        "is not the one that this silo announced",
    ),
    "of other layers": (changed(GET, 1, arrays=arrays(lambda model: {"y": torch.zeros(2)})), "are missing or unknown"),
    "too few announced": (changed(TRAIN, 1, digests=lambda all: all[1:]), "digests of 3 shards, must be 4"),
    "too many images": (changed(TRAIN, 1, num_examples=lambda _: 10**7), "num-examples = 10000000"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_answer_that_lacks_one_sound_shard_does_not_count_and_says_so(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tamper, said = BAD[case]
    run = Run(tmp_path / "run", "fedavg", SHARD, tamper)
    without = Run(tmp_path / "without", "fedavg", None, spoil(TrainRequest.kind, failed))
    measured = run.play()
    assert said in caplog.text
    if any(word in case for word in ("between", "given", "foreign", "replayed")):
        assert "silo-1 drops out at shard" in caplog.text
        assert "nothing of it counts" in caplog.text
    assert measured["num-examples"] == without.play()["num-examples"]
    assert same(run.weights, without.weights)
    assert not [path for path in run.files() if path.startswith("silo")], "answers go at the end of the round"


def test_the_log_of_answers_has_one_entry_a_round_with_loss_and_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, "fedavg", SHARD, spoil(GET, failed, 2))
    run.exchange.reply_log.names = {100 + k: f"silo-{k}" for k in range(SILOS)}
    run.play()
    row = run.exchange.reply_log.row()
    assert {name: entry["loss"] for name, entry in row.items() if name != "silo-1"} == {
        f"silo-{k}": 1.0 + k for k in range(SILOS) if k != 1
    }
    assert row["silo-1"]["left-out"] == "silo-1: no power"


def test_an_answer_that_comes_twice_counts_once(tmp_path: Path) -> None:
    once, twice = Run(tmp_path / "1", "fedavg", SHARD), Run(tmp_path / "2", "fedavg", SHARD, lambda all: [*all, *all])
    once.play()
    twice.play()
    assert same(once.weights, twice.weights)


def test_too_few_whole_answers_end_the_run_and_leave_the_weights_as_they_were(tmp_path: Path) -> None:
    run = Run(
        tmp_path, "fedavg", SHARD, lambda replies: [failed(r) if r.metadata.message_type == GET else r for r in replies]
    )
    with pytest.raises(RunError, match=r"0 usable answers, 4 needed"):
        run.play()
    assert same(run.weights, weights())
    assert run.files() == [f"weights-00000/shard-{k:05d}.safetensors" for k in range(4)]


@pytest.mark.parametrize("writes", [1, 9, 30])
def test_a_full_disk_ends_the_run_by_name_and_loses_nothing(writes: int, tmp_path: Path) -> None:
    run = Run(tmp_path, "fedavg", SHARD)
    with full_after(writes, tmp_path), pytest.raises(UserError, match=r"cannot write .*shard-.*no space left"):
        run.play()
    assert same(run.weights, weights())
    assert not [path for path in run.files() if not path.startswith("weights-")]


def test_a_disk_without_room_is_named_before_any_silo_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"not enough disk space for .*spool"):
        Run(tmp_path, "fedavg", SHARD)


def test_an_answer_that_changes_on_the_servers_disk_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, "krum", SHARD, **SETTINGS["krum"])
    stream = run.strategy._stream
    assert stream is not None
    fetch = stream.fetch

    def damaged(*given: Any) -> Any:
        found = fetch(*given)
        (run.spool / "silo-00002" / "shard-00003.safetensors").write_bytes(b"\0" * 100)
        return found

    stream.fetch = damaged  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"shard-00003.*was written whole, and has changed"):
        run.play()


def test_what_a_run_needs_is_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = sum(layer.numel() for layer in weights().values())
    shapes = {name: tuple(layer.shape) for name, layer in weights().items()}

    def needs(strategy: str, **given: Any) -> StreamNeeds:
        settings = {"strategy": strategy, "max-message-mb": SHARD, **given}
        return StreamNeeds.of(RunConfig.from_run_config(settings), shapes, 4)

    largest = 4 * 45
    assert needs("fedavg") == StreamNeeds(10 * largest, 4 * (4 + 3 + 3) * numbers, 4 * numbers)
    assert needs("fedavgm").server_memory == 10 * largest + 8 * numbers
    assert needs("fedyogi", **{"sample-from": "ema"}).server_memory == 10 * largest + (16 + 4) * numbers
    assert needs("fedavg", **{"wire-dtype": "float16"}).silo_disk == 2 * numbers


def test_weights_on_disk_are_read_where_they_are_looked_at(tmp_path: Path) -> None:
    run = Run(tmp_path, "fedavg", SHARD)
    array = run.arrays["a.weight"]
    assert isinstance(array, transport.StoredArray)
    plain = transport.encode(weights()["a.weight"])
    assert (array.data, array.dtype, array.shape, array.stype) == (plain.data, plain.dtype, plain.shape, plain.stype)
    run.strategy._stream.forget(0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"'a.weight' cannot be read from 'shard-00002"):
        transport.peek(array)


def test_a_whole_run_in_shards_draws_the_images_of_one_whose_weights_travel_whole(tmp_path: Path) -> None:
    small: dict[str, Scalar] = {"strategy": "fedavg", "num_samples": 6, "samples_per_client": 30, "train_steps": 2}
    whole = run_tiny(tiny_settings(tmp_path / "whole", **small), report=False)
    sharded = run_tiny(tiny_settings(tmp_path / "shards", max_message_mb=0.02, **small), report=False)
    assert "weights of 70.5 kB travel in 4 shards" in sharded.log.read_text()
    assert images_of(sharded) == images_of(whole)
    assert not sharded.spool.exists()
    assert not list((tmp_path / "shards" / "state").glob("*/shards/*")), "nothing is left at the silos"


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
