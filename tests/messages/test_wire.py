from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hand_made import bare_reply, error_reply, request_to

from fedsynth.messages import packing, wire
from fedsynth.spec import ImageSpec

TENSORS = {
    "float32": torch.tensor([[1.5, -2.25, 1e-30], [0.0, torch.inf, 3.4e38]]),
    "float64": torch.tensor([1.0 + 1e-15]),
    "int64": torch.tensor([-(2**62), 0, 2**53 + 1]),
    "uint8": torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros((0, 1, 8, 8)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_as_they_were(name: str) -> None:
    tensor = TENSORS[name]
    back = wire.decode(wire.encode(tensor))
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_half_precision_is_for_floating_point_values_only_and_comes_back_single() -> None:
    for name, tensor in TENSORS.items():
        array = wire.encode(tensor, "float16")
        back = wire.decode(array)
        if tensor.is_floating_point():
            assert array.dtype == "float16"
            assert back.dtype == torch.float32
            with np.errstate(over="ignore"):
                expected = tensor.numpy().astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(back.numpy(), expected)
        else:
            assert array.dtype == str(tensor.numpy().dtype), name
            assert torch.equal(back, tensor)


def test_state_dict_survives_serialisation() -> None:
    layer = torch.nn.BatchNorm2d(3)
    record = wire.encode_tensors(layer.state_dict())
    message = wire.request(5, wire.TRAIN, {"steps": 3}, record)
    parts = {number: part.deflate() for number, part in get_all_nested_objects(message).items()}
    back = inflate_object_from_contents(message.object_id, parts)
    assert isinstance(back, Message)
    tensors = wire.decode_tensors(wire.array_record(back, wire.ARRAYS))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        name: tensor.dtype for name, tensor in layer.state_dict().items()
    }
    layer.load_state_dict(tensors)


def test_decoded_memory_is_the_tensor_s_own() -> None:
    array = wire.encode(torch.zeros(3))
    first = wire.decode(array)
    first += 1
    assert wire.decode(array).tolist() == [0.0, 0.0, 0.0]


def test_tensors_that_need_gradients_or_are_views_can_be_sent() -> None:
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    assert torch.equal(wire.decode(wire.encode(tensor)), tensor.detach())


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (3,), "numpy.ndarray", b""),
        Array("float32", (3,), "numpy.ndarray", b"PK\x03\x04 no zip"),
        Array("float32", (3,), "numpy.ndarray", wire.encode(torch.zeros(100)).data[:-40]),
        Array("float32", (3,), "pickle", b"cos\nsystem\n(S'true'\ntR."),
        Array("float32", (3,), "numpy.ndarray", b"\x80\x04cos\nsystem\n."),
        Array(np.array(["text"])),
        Array(np.array([1.0], dtype=">f8")),
    ],
    ids=["empty", "zip", "truncated", "other type", "pickle", "text", "big endian"],
)
def test_bytes_that_are_no_tensor_give_one_kind_of_error(array: Array) -> None:
    with pytest.raises(ValueError, match="array cannot be read"):
        wire.decode(array)


def test_request_layout() -> None:
    record = wire.encode_tensors({"x": torch.ones(2)})
    message = wire.request(5, wire.EPSILON, {"timestep": 7}, record, ttl=30.0)
    assert message.metadata.dst_node_id == 5
    assert message.metadata.message_type == "query.epsilon"
    assert message.metadata.ttl == 30.0
    assert dict(message.content.config_records["config"]) == {"timestep": 7}
    assert wire.array_record(message, "arrays") is record
    assert set(wire.request(5, wire.TRAIN, {}).content) == {"config"}


def test_answer_layout() -> None:
    request = request_to(5)
    record = wire.encode_tensors({"x": torch.ones(2)})
    answer = wire.answer(request, ConfigRecord({"silo-name": "a"}), {"loss": 0.5}, epsilon=record)
    assert set(answer.content) == {"silo", "metrics", "epsilon#0"}
    assert wire.array_names(answer) == {"epsilon"}
    assert wire.array_record(answer, "epsilon") == record
    assert dict(answer.content.metric_records["metrics"]) == {"loss": 0.5}
    assert answer.metadata.src_node_id == 5


def test_a_network_travels_in_few_objects_and_silos_share_them() -> None:
    layers = {f"layer.{k}": torch.full((3, 2), float(k)) for k in range(100)}
    record = wire.encode_tensors(layers)
    messages = [wire.request(node, wire.TRAIN, {"node": node}, record) for node in (1, 2)]
    wire.pack_messages(messages)
    objects = [get_all_nested_objects(message) for message in messages]
    # The message, its dictionary of records, the configuration and the packed layers.
    assert [len(parts) for parts in objects] == [4, 4]
    assert len(objects[0].keys() & objects[1].keys()) == 1
    first, second = (message.content["arrays#0"] for message in messages)
    assert first is second
    for message in messages:
        assert wire.config(message)["node"] == message.metadata.dst_node_id
        assert wire.array_names(message) == {"arrays"}
        back = wire.array_record(message, "arrays")
        assert list(back) == list(layers)
        assert back == record


@pytest.mark.parametrize("lost", [None, 0, 1, 2])
def test_large_arrays_are_cut_and_a_lost_piece_is_noticed(lost: int | None) -> None:
    record = wire.encode_tensors({"x": torch.randn(2_200_000), "y": torch.arange(3)})
    message = wire.request(5, wire.TRAIN, {}, record)
    wire.pack_messages([message])
    assert sorted(message.content) == ["arrays#0", "arrays#1", "arrays#2", "config"]
    if lost is None:
        assert wire.array_record(message, "arrays") == record
    else:
        del message.content[f"arrays#{lost}"]
        with pytest.raises(ValueError, match="'arrays' cannot be read: packed arrays: "):
            wire.array_record(message, "arrays")


@pytest.mark.parametrize(
    "pieces",
    [
        {"other": b"abc"},
        {"packed": "text"},
        {"packed": b"abc"},
        {"packed": packing.pack({"x": packing.Packed(7, (1,), "numpy.ndarray", b"")})[0]},  # type: ignore[arg-type]
        {"packed": packing.pack({"x": packing.Packed("f", ("a",), "numpy.ndarray", b"")})[0]},  # type: ignore[arg-type]
    ],
)
def test_packed_arrays_of_a_stranger_give_one_kind_of_error(pieces: dict[str, bytes | str]) -> None:
    message = wire.answer(request_to(5), ConfigRecord(), {})
    message.content["epsilon#0"] = ConfigRecord(dict(pieces))
    with pytest.raises(ValueError, match="cannot be read"):
        wire.array_record(message, "epsilon")


def test_second_array_record_of_a_request_arrives_and_is_counted() -> None:
    message = wire.request(5, wire.SAMPLE, {}, wire.encode_tensors({"labels": torch.arange(3)}))
    before = wire.payload_bytes(message)
    message.content[wire.WEIGHTS] = wire.encode_tensors({"w": torch.ones(1000)})
    assert wire.decode(wire.array_record(message, wire.WEIGHTS)["w"]).sum() == 1000
    assert 4000 < wire.payload_bytes(message) - before < 4200


@pytest.mark.parametrize("kind", [wire.TRAIN, wire.PREPARE, wire.EPSILON, wire.SAMPLE, wire.UPLOAD])
def test_every_message_is_in_the_table(kind: str) -> None:
    assert f"| ``{kind}`` |" in (wire.__doc__ or "")


@pytest.mark.parametrize("size", [1, 10_000, 300_000])
def test_payload_is_what_is_serialised_but_for_flower_s_own_heads(size: int) -> None:
    arrays = wire.encode_tensors({"weights": torch.randn(size), "labels": torch.arange(size)})
    message = wire.request(5, wire.EPSILON, {"timestep": 7, "classes": ["a", "b"]}, arrays)
    serialised = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    counted = wire.payload_bytes(message)
    assert size * (4 + 8) < counted < serialised
    assert serialised - counted < 2500


def test_payload_counts_every_record_and_nothing_of_an_error() -> None:
    request = request_to(5)
    silo, metrics = ConfigRecord({"silo-name": "north"}), MetricRecord({"loss": 0.5, "curve": [1.0, 2.0]})
    answer = Message(RecordDict({"silo": silo, "metrics": metrics}), reply_to=request)
    assert wire.payload_bytes(answer) == len(silo.deflate()) + len(metrics.deflate())
    answer.content["more"] = ArrayRecord({"x": wire.encode(torch.zeros(10))})
    assert wire.payload_bytes(answer) >= len(silo.deflate()) + len(metrics.deflate()) + 1 + 40
    assert wire.payload_bytes(error_reply(request, "broken")) == 0


@pytest.mark.parametrize("spec", [ImageSpec(1, 8, ("0", "1")), ImageSpec(3, 64, ("eye glasses", "ä", "7"))])
def test_image_spec_comes_back(spec: ImageSpec) -> None:
    assert wire.spec_from_config(ConfigRecord({**wire.spec_to_config(spec), "other": 1})) == spec


@pytest.mark.parametrize(
    ("silo", "key"),
    [
        ({"partition-id": 12}, (12, "silo-12")),
        ({"silo-name": "north"}, (0, "north")),
        ({"partition-id": 3, "silo-name": "north"}, (3, "silo-3")),
        ({}, (77, "node-77")),
        (None, (77, "node-77")),
        ({"partition-id": "three"}, (77, "node-77")),
    ],
)
def test_silo_keys(silo: dict[str, Any] | None, key: tuple[int, str]) -> None:
    assert wire.silo_key(bare_reply(request_to(77), silo)) == key


def test_silo_key_of_an_error() -> None:
    assert wire.silo_key(error_reply(request_to(77), "broken")) == (77, "node-77")


def test_silo_keys_sort_partitions_as_numbers() -> None:
    replies = [bare_reply(request_to(100 - k), {"partition-id": k}) for k in (10, 2, 0)]
    assert [wire.silo_key(reply)[1] for reply in sorted(replies, key=wire.silo_key)] == ["silo-0", "silo-2", "silo-10"]


def test_number() -> None:
    record = ConfigRecord({"steps": 3, "rate": 0.5, "name": "x", "list": [1, 2]})
    assert (wire.number(record, "steps"), wire.number(record, "rate")) == (3.0, 0.5)
    assert wire.number(record, "absent", 2.0) == 2.0
    for key in ("absent", "name", "list"):
        with pytest.raises(ValueError, match=f"{key} = .*: must be a number"):
            wire.number(record, key)
    with pytest.raises(ValueError, match="name = 'x'"):
        wire.number(record, "name", 2.0)


def test_numbers() -> None:
    record = MetricRecord({"counts": [1, 2], "losses": [0.5], "loss": 0.5})
    assert wire.numbers(record, "counts") == [1.0, 2.0]
    assert wire.numbers(record, "losses") == [0.5]
    for key in ("loss", "absent"):
        with pytest.raises(ValueError, match=f"{key} = .*: must be a list of numbers"):
            wire.numbers(record, key)
