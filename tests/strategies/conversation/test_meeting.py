from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message
from hand_made import StubGrid, bare_reply, error_reply

from fedsynth import __version__
from fedsynth.errors import RunError
from fedsynth.messages import PROTOCOL, PrepareRequest
from fedsynth.spec import ImageSpec
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.meeting import take_census

SPEC = ImageSpec(3, 16, ("cat", "dog", "emu"))
CLINIC = {"silo-name": "clinic"}


def silos(identities: dict[int, dict[str, Any]]) -> Callable[[Message], Message]:
    """Answers by node id, with the label counts (node, 1, 0)."""

    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return bare_reply(message, identities[node], num_examples=node + 1, label_counts=[node, 1, 0])

    return respond


def census_by(respond: Callable[[Message], Message], nodes: list[int]) -> Census:
    return take_census(Exchange(StubGrid(nodes, respond), 5.0), nodes, SPEC, 1000)


def test_members_sort_by_partition_not_by_node_or_arrival() -> None:
    identities = {7: {"partition-id": 11}, 9: {"partition-id": 2}, 8: {"partition-id": 0}}
    for nodes in ([7, 8, 9], [9, 7, 8]):
        census = census_by(silos(identities), nodes)
        assert [(member.name, member.node_id) for member in census] == [("silo-0", 8), ("silo-2", 9), ("silo-11", 7)]
        assert census.label_counts.tolist() == [[8, 1, 0], [9, 1, 0], [7, 1, 0]]
        assert census.label_counts.dtype == torch.int64
        assert [member.num_examples for member in census] == [9, 10, 8]
    census = census_by(silos({1: {"silo-name": "north"}, 2: {"silo-name": "east"}}), [1, 2])
    assert [member.name for member in census] == ["east", "north"]


def test_a_silo_of_another_version_takes_part_and_both_versions_are_named(caplog: pytest.LogCaptureFixture) -> None:
    identities = {1: {"silo-name": "north", "version": "0.9.1"}, 2: {"silo-name": "south", "version": __version__}}
    with caplog.at_level(logging.INFO, "fedsynth"):
        census = census_by(silos(identities), [1, 2])
    assert [member.version for member in census] == ["0.9.1", __version__]
    said = [record.getMessage() for record in caplog.records if "has fedsynth" in record.getMessage()]
    both = f"north has fedsynth 0.9.1, this server {__version__}"
    assert said == [f"{both}: they go together, both speak protocol {PROTOCOL}"]


def test_census_asks_for_counts_in_the_run_s_format_and_not_for_training() -> None:
    grid = StubGrid([4], silos({4: {}}))
    take_census(Exchange(grid, 5.0), [4], SPEC, 1000)
    request = PrepareRequest.from_message(grid.requests[0])
    assert (request.spec, request.train_seconds) == (SPEC, 0.0)


def test_claims_that_make_no_sense_are_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    counts = {1: [5, 0, 2], 2: [10**9, 10**9, 10**9], 3: [1, 1], 4: [0, 0, 0]}

    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return bare_reply(message, {"partition-id": node}, label_counts=counts[node])

    census = census_by(respond, [1, 2, 3, 4])
    assert [(member.name, member.num_examples) for member in census] == [("silo-1", 7)]
    assert "silo-2 left out of the run: claims 3000000000 images, must be 1 to max-silo-images = 1000" in caplog.text
    assert "silo-3 left out of the run: label counts [1, 1] do not fit 3 classes" in caplog.text
    assert "silo-4 left out of the run: claims 0 images, must be 1 to max-silo-images = 1000; the noise" in caplog.text
    with pytest.raises(RunError, match="no silo can take part: silo-2: claims 3000000000 images"):
        census_by(respond, [2])


@pytest.mark.parametrize(
    ("respond", "why"),
    [
        (lambda m: bare_reply(m, CLINIC, label_counts=[1, -2, 3]), "2 needed: clinic: label-counts = -2: must be a"),
        (lambda m: bare_reply(m, CLINIC), r"no silo can take part: clinic: label counts \[\] do not fit 3 classes"),
        (lambda m: error_reply(m, "silo-2: UserError: no images"), "0 usable answers, 2 needed: silo-2: UserError: no"),
        (silos({1: CLINIC, 2: CLINIC}), r"two silos go by one name \(clinic, clinic\): give each its own silo-name"),
    ],
)
def test_what_cannot_be_counted_ends_the_run_by_name(respond: Callable[[Message], Message], why: str) -> None:
    with pytest.raises(RunError, match=why):
        census_by(respond, [1, 2])


def test_unasked_silos_count_as_one_image_of_every_class() -> None:
    census = Census.unknown([9, 4], 3)
    assert not census.known
    assert [(member.name, member.node_id, member.num_examples) for member in census] == [
        ("node-4", 4, 3),
        ("node-9", 9, 3),
    ]
    assert census.label_counts.tolist() == [[1, 1, 1], [1, 1, 1]]
