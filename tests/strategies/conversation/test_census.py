from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message
from hand_made import StubGrid, bare_reply, error_reply, request_to

from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.conversation.census import Census, Member, take_census

SPEC = ImageSpec(3, 16, ("cat", "dog", "emu"))


def silos(identities: dict[int, dict[str, Any]], **metrics: Any) -> Callable[[Message], Message]:
    """Answers by node id, with the label counts (node, 1, 0) unless metrics are given."""

    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        given = metrics or {"num_examples": node + 1, "label_counts": [node, 1, 0]}
        return bare_reply(message, identities.get(node), **given)

    return respond


def census_by(respond: Callable[[Message], Message], nodes: list[int]) -> Census:
    return take_census(StubGrid(nodes, respond), nodes, SPEC, 5.0, 1000)


def test_members_sort_by_partition_not_by_node_or_arrival() -> None:
    identities = {7: {"partition-id": 11}, 9: {"partition-id": 2}, 8: {"partition-id": 0}}
    for nodes in ([7, 8, 9], [9, 7, 8]):
        census = census_by(silos(identities), nodes)
        assert [member.name for member in census] == ["silo-0", "silo-2", "silo-11"]
        assert [member.node_id for member in census] == [8, 9, 7]
        assert census.label_counts.tolist() == [[8, 1, 0], [9, 1, 0], [7, 1, 0]]
        assert census.label_counts.dtype == torch.int64
        assert [member.num_examples for member in census] == [9, 10, 8]


def test_real_silos_sort_by_name() -> None:
    census = census_by(silos({1: {"silo-name": "north"}, 2: {"silo-name": "east"}}), [1, 2])
    assert [member.name for member in census] == ["east", "north"]


def test_census_asks_for_counts_in_the_run_s_format_and_not_for_training() -> None:
    grid = StubGrid([4], silos({}))
    take_census(grid, [4], SPEC, 5.0, 1000)
    (message,) = grid.requests
    config = message.content.config_records[wire.CONFIG]
    assert message.metadata.message_type == "query.prepare"
    assert wire.spec_from_config(config) == SPEC
    assert config["train-seconds"] == 0.0
    assert message.metadata.ttl == 5.0


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"label_counts": [1, 2]}, r"silo-0: label counts \[1, 2\] do not fit 3 classes"),
        ({"label_counts": [1, 2, 3, 4]}, r"label counts \[1, 2, 3, 4\] do not fit 3 classes"),
        ({"label_counts": [1, -2, 3]}, r"label counts \[1, -2, 3\] do not fit"),
        ({"label_counts": [1.0, float("nan"), 3.0]}, "silo-0: cannot convert float"),
        ({"label_counts": [1.0, float("inf"), 3.0]}, "silo-0: cannot convert float"),
        ({"label_counts": 3}, "silo-0: label-counts = 3: must be a list"),
        ({"num_examples": 3}, "silo-0: label-counts = None"),
        ({"label_counts": [1000, 1, 0]}, "silo-0: claims 1001 images, must be 1 to max-silo-images = 1000"),
        ({"label_counts": [0, 0, 0]}, "silo-0: claims 0 images"),
    ],
)
def test_counts_that_make_no_sense_end_the_run_if_nobody_is_left(metrics: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        census_by(silos({3: {"partition-id": 0}}, **metrics), [3])


def test_a_silo_that_claims_too_much_is_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    def respond(message: Message) -> Message:
        counts = {1: [5, 0, 2], 2: [10**9, 10**9, 10**9], 3: [1, 1]}[message.metadata.dst_node_id]
        return bare_reply(message, {"partition-id": message.metadata.dst_node_id}, label_counts=counts)

    census = census_by(respond, [1, 2, 3])
    assert [(member.name, member.num_examples) for member in census] == [("silo-1", 7)]
    assert "silo-2 left out of the run: claims 3000000000 images, must be 1 to max-silo-images = 1000" in caplog.text
    assert "silo-3 left out of the run: label counts [1, 1] do not fit 3 classes" in caplog.text


def test_answer_without_metrics_ends_the_run_by_name() -> None:
    def respond(message: Message) -> Message:
        empty = bare_reply(message, {"silo-name": "clinic"})
        del empty.content[wire.METRICS]
        return empty

    with pytest.raises(RunError, match="clinic: label-counts = None"):
        census_by(respond, [3])


def test_two_silos_of_one_name_are_refused() -> None:
    with pytest.raises(RunError, match=r"two silos go by one name \(clinic, clinic\): give each its own silo-name"):
        census_by(silos({1: {"silo-name": "clinic"}, 2: {"silo-name": "clinic"}}), [1, 2])


def test_every_silo_must_open_its_images() -> None:
    def respond(message: Message) -> Message:
        return error_reply(message, "silo-2: UserError: no images in class folder 'cat'")

    with pytest.raises(
        RunError, match="0 usable answers, 2 needed: silo-2: UserError: no images in class folder 'cat'"
    ):
        census_by(respond, [1, 2])


def test_unasked_silos_count_as_one_image_of_every_class() -> None:
    census = Census.unknown([9, 4], 3)
    assert [(member.name, member.node_id, member.num_examples) for member in census] == [
        ("node-4", 4, 3),
        ("node-9", 9, 3),
    ]
    assert census.label_counts.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_position_goes_by_name_then_by_node() -> None:
    census = Census([Member(8, "silo-0", 1, [1]), Member(5, "silo-1", 1, [1])])
    assert census.position(bare_reply(request_to(5), {"partition-id": 1})) == 1
    assert census.position(bare_reply(request_to(99), {"partition-id": 1})) == 1, "reconnected under another id"
    assert census.position(bare_reply(request_to(5))) == 1
    assert census.position(bare_reply(request_to(8), {"silo-name": "renamed"})) == 0
    assert census.position(bare_reply(request_to(77), {"partition-id": 3})) is None
