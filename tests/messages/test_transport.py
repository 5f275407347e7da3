from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedsynth.messages import PROTOCOL, DescribeRequest, EpsilonAnswer, EpsilonRequest, Sender, transport

TENSORS = {
    "float32": torch.tensor([[1.5, -2.25, 1e-30], [0.0, torch.inf, 3.4e38]]),
    "float64": torch.tensor([1.0 + 1e-15]),
    "int64": torch.tensor([-(2**62), 0, 2**53 + 1]),
    "uint8": torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros((0, 1, 8, 8)),
}


def message_of(content: dict[str, ArrayRecord | ConfigRecord | MetricRecord], node: int = 5) -> Message:
    return Message(RecordDict(content), dst_node_id=node, message_type="train")


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_as_they_were(name: str) -> None:
    tensor = TENSORS[name]
    back = transport.decode(transport.encode(tensor))
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_half_precision_is_for_floating_point_values_only_and_comes_back_single() -> None:
    for name, tensor in TENSORS.items():
        array = transport.encode(tensor, "float16")
        back = transport.decode(array)
        if tensor.is_floating_point():
            assert array.dtype == "float16"
            assert back.dtype == torch.float32
            with np.errstate(over="ignore"):
                expected = tensor.numpy().astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(back.numpy(), expected)
        else:
            assert array.dtype == str(tensor.numpy().dtype), name
            assert torch.equal(back, tensor)


def test_decoded_memory_is_the_tensor_s_own_and_views_with_gradients_can_be_sent() -> None:
    array = transport.encode(torch.zeros(3))
    first = transport.decode(array)
    first += 1
    assert transport.decode(array).tolist() == [0.0, 0.0, 0.0]
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    assert torch.equal(transport.decode(transport.encode(tensor)), tensor.detach())


def test_layout_of_a_request_and_an_answer() -> None:
    samples, labels = torch.ones(1, 1, 8, 8), torch.tensor([0])
    message = EpsilonRequest(samples=samples, labels=labels, timestep=7).to_message(5, ttl=30.0)
    assert message.metadata.dst_node_id == 5
    assert message.metadata.message_type == "query.epsilon"
    assert message.metadata.ttl == 30.0
    assert dict(message.content.config_records["config"]) == {"protocol": PROTOCOL, "timestep": 7}
    assert list(transport.array_record(message, "arrays")) == ["samples", "labels"]
    assert set(DescribeRequest().to_message(5).content) == {"config"}

    answer = EpsilonAnswer(epsilon=torch.ones(1, 1, 8, 8), num_examples=1, seconds=0.5)
    message = answer.to_message(DescribeRequest().to_message(5), Sender(0, "a"))
    assert set(message.content) == {"silo", "metrics", "epsilon#0"}
    assert transport.array_names(message) == {"epsilon"}
    assert dict(message.content.metric_records["metrics"]) == {"num-examples": 1, "seconds": 0.5}
    assert dict(message.content.config_records["silo"]) == {"protocol": PROTOCOL, "silo-name": "a"}
    assert message.metadata.src_node_id == 5


def test_a_network_travels_in_few_objects_and_silos_share_them() -> None:
    layers = {f"layer.{k}": torch.full((3, 2), float(k)) for k in range(100)}
    record = transport.encode_tensors(layers)
    messages = [message_of({"arrays": record}, node) for node in (1, 2)]
    transport.pack_messages(messages)
    objects = [get_all_nested_objects(message) for message in messages]
    # The message, its dictionary of records and the packed layers.
    assert [len(parts) for parts in objects] == [3, 3]
    assert len(objects[0].keys() & objects[1].keys()) == 2
    first, second = (message.content["arrays#0"] for message in messages)
    assert first is second
    for message in messages:
        assert transport.array_names(message) == {"arrays"}
        back = transport.array_record(message, "arrays")
        assert list(back) == list(layers)
        assert back == record


def test_large_arrays_are_cut_and_a_lost_piece_is_noticed() -> None:
    record = transport.encode_tensors({"x": torch.randn(2_200_000), "y": torch.arange(3)})
    message = message_of({"arrays": record})
    transport.pack_messages([message])
    assert sorted(message.content) == ["arrays#0", "arrays#1", "arrays#2"]
    assert transport.array_record(message, "arrays") == record
    del message.content["arrays#1"]
    with pytest.raises(ValueError, match="'arrays' cannot be read: packed arrays: "):
        transport.array_record(message, "arrays")


@pytest.mark.parametrize("size", [1, 300_000])
def test_payload_is_what_is_serialised_but_for_flower_s_own_heads(size: int) -> None:
    arrays = transport.encode_tensors({"weights": torch.randn(size), "labels": torch.arange(size)})
    message = message_of({"config": ConfigRecord({"timestep": 7, "classes": ["a", "b"]}), "arrays": arrays})
    serialised = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    counted = transport.payload_bytes(message)
    assert size * (4 + 8) < counted < serialised
    assert serialised - counted < 2500


def test_payload_counts_every_record_and_nothing_of_an_error() -> None:
    silo, metrics = ConfigRecord({"silo-name": "north"}), MetricRecord({"loss": 0.5, "curve": [1.0, 2.0]})
    answer = message_of({"silo": silo, "metrics": metrics})
    assert transport.payload_bytes(answer) == len(silo.deflate()) + len(metrics.deflate())
    answer.content["more"] = ArrayRecord({"x": transport.encode(torch.zeros(10))})
    assert transport.payload_bytes(answer) >= len(silo.deflate()) + len(metrics.deflate()) + 1 + 40
    assert transport.payload_bytes(Message(Error(code=1, reason="broken"), reply_to=answer)) == 0
