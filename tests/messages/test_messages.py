"""Every message: there and back, and every kind of bad value that its declaration allows to make."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from message_examples import EXAMPLES, SPEC, bad_values, differences, is_required, sent, travelling
from message_fuzzing import survivors_of

from fedsynth import __version__
from fedsynth.messages import (
    PROTOCOL,
    REQUESTS,
    Answer,
    DescribeRequest,
    EpsilonRequest,
    MessageError,
    PrepareAnswer,
    PrepareRequest,
    Request,
    Sender,
    sender_of,
    transport,
)
from fedsynth.messages.envelope import Reader, Shared, installed_version
from fedsynth.messages.fields import real, setting, whole

BOTH = {f"{name} {side}": getattr(pair, side) for name, pair in EXAMPLES.items() for side in ("request", "answer")}
NEEDED: dict[str, dict[str, Any]] = {
    "epsilon request": {"timestep": 5},
    "epsilon, where silos aggregate request": {"timestep": 5},
    "epsilon, several timesteps request": {"timestep": 5},
    "masked train request": {"weights": torch.full((3, 1), 1 / 3)},
    "synthesise request": {"weights": EXAMPLES["synthesise"].request.weights},  # type: ignore[attr-defined]
    "synthesise, drawn by others request": {"images": torch.zeros((2, 8, 8, 3), dtype=torch.uint8)},
}
"""What a message without its optional fields cannot be without."""


def read(example: Any, message: Message) -> Any:
    return type(example).from_message(message)


def through_flower(message: Message) -> Message:
    """A message after the journey between two machines."""
    parts = {number: part.deflate() for number, part in get_all_nested_objects(message).items()}
    back = inflate_object_from_contents(message.object_id, parts)
    assert isinstance(back, Message)
    return back


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_both_ends_find_the_same_digest_of_a_question_and_another_one_of_any_other(name: str) -> None:
    request = EXAMPLES[name].request
    assert read(request, sent(request)).digest() == request.digest()
    others = {request.digest()}
    for field in (info.name for info, _ in travelling(request) if getattr(request, info.name) is not None):
        assert request.digest({field}) not in others
        others.add(request.digest({field}))


def test_a_weight_that_one_silo_is_sent_otherwise_shows_in_the_digest() -> None:
    request = EXAMPLES["train"].request
    weights = transport.decode_tensors(request.arrays)
    weights["conv.weight"][0, 0] += 1e-6
    assert replace(request, arrays=transport.encode_tensors(weights)).digest() != request.digest()
    assert replace(request, steps=6).digest() != request.digest()


def test_every_message_has_an_example_that_fills_every_field() -> None:
    assert {type(pair.request) for pair in EXAMPLES.values()} == set(REQUESTS)
    filled = {
        (type(example), info.name)
        for example in BOTH.values()
        for info, _ in travelling(example)
        if is_required(info) or getattr(example, info.name) != info.default
    }
    assert filled == {(type(example), info.name) for example in BOTH.values() for info, _ in travelling(example)}
    assert len({request.kind for request in REQUESTS}) == len(REQUESTS)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_all_fields_come_back(name: str, packed: bool) -> None:
    example = BOTH[name]
    for message in (sent(example, packed), through_flower(sent(example, packed))):
        assert differences(example, read(example, message)) == []
    if isinstance(example, Answer):
        request = EXAMPLES[name.removesuffix(" answer")].request
        answer = request.reader()(sent(example, packed))
        assert differences(example, answer) == []
        assert answer.sender == Sender(3, "silo-3", 3)


@pytest.mark.parametrize("name", BOTH)
def test_optional_fields_may_be_absent(name: str) -> None:
    full = BOTH[name]
    optional = {info.name: info.default for info, _ in travelling(full) if not is_required(info)}
    example = replace(full, **{**optional, **NEEDED.get(name, {})})
    message = sent(example)
    assert differences(example, read(example, message)) == []
    keys = {key for record in message.content.values() if isinstance(record, ConfigRecord) for key in record}
    missing = {name.replace("_", "-") for name, value in optional.items() if value is None} - {"timestep"}
    assert not keys & missing


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("prepare", {"loss": None}, "loss is missing"),
        ("prepare", {"steps": None}, "steps is missing"),
        ("prepare, privately", {"steps": None}, "steps is missing"),
        ("prepare, privately", {"loss": 0.5}, "a loss or a share of copies, in a run with dp-epsilon"),
        ("prepare, privately", {"copied_share": 0.0}, "a loss or a share of copies, in a run with dp-epsilon"),
        ("epsilon", {"epsilon": torch.zeros(3, 3, 8, 8)}, "shape (3, 3, 8, 8), not (4, 3, 8, 8)"),
        ("sample", {"images": torch.zeros(2, 8, 8, 1, dtype=torch.uint8)}, "shape (2, 8, 8, 1), not (2, 8, 8, 3)"),
        ("statistics", {"extractor": "pixels"}, "extractor: measured with another network"),
        ("evaluate", {"weights_hash": "0" * 64}, "weights-hash: measured with another classifier"),
    ],
)
def test_answer_that_does_not_fit_its_question(name: str, changes: dict[str, Any], said: str) -> None:
    request, answer = EXAMPLES[name]
    with pytest.raises(MessageError, match=re.escape(said)):
        request.reader()(sent(replace(answer, **changes)))


def test_silo_that_is_not_asked_to_train_need_not_tell_of_it() -> None:
    answer = PrepareAnswer(num_examples=3, label_counts=(1, 2))
    assert differences(answer, PrepareRequest(spec=SPEC).reader()(sent(answer))) == []


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("prepare answer", {"curve_steps": (1.0,)}, "1 curve-steps, but 2 curve-losses"),
        ("prepare answer", {"curve_steps": (), "curve_losses": ()}, "a finished model without a loss curve"),
        ("epsilon request", {"labels": torch.tensor([0])}, "4 samples with 1 labels"),
        ("epsilon request", {"timesteps": torch.arange(4)}, "either a timestep or timesteps"),
        ("epsilon request", {"timestep": None}, "either a timestep or timesteps"),
        ("epsilon, several timesteps request", {"timesteps": torch.arange(2)}, "3 samples with 2 timesteps"),
        ("sample request", {"numbers": torch.arange(3)}, "2 labels with 3 numbers"),
        ("sample request", {"labels": torch.tensor([0, 2])}, "label 2 with 2 classes"),
        ("statistics answer", {"products": torch.zeros(3, 2, dtype=torch.float64)}, "shape (3, 2) beside a mean of 3"),
        ("evaluate request", {"radii": torch.zeros(5, dtype=torch.float64)}, "6 centres with 5 radii"),
        ("evaluate answer", {"wrong_outside": 3}, "num-examples = 9, but the cells hold 10"),
    ],
)
def test_fields_that_do_not_go_together(name: str, changes: dict[str, Any], said: str) -> None:
    example = replace(BOTH[name], **changes)
    with pytest.raises(MessageError, match=re.escape(said)):
        read(example, sent(example))


@pytest.mark.parametrize(
    ("stated", "behind"),
    [(None, "theirs"), (0, "theirs"), (PROTOCOL + 1, "ours"), ("1", ""), (True, ""), (2**63 - 1, "ours")],
)
def test_another_protocol_is_refused_with_both_numbers_and_versions(stated: Any, behind: str) -> None:
    spoken = "a protocol before 1" if stated is None else f"protocol {stated!r}"
    for request, answer in EXAMPLES.values():
        for example, record, who in ((request, "config", "server"), (answer, "silo", "silo")):
            message = sent(example)
            assert ("version" in message.content[record]) == type(example).introduces
            del message.content[record]["protocol"]
            message.content[record]["version"] = "0.9.1"
            if stated is not None:
                message.content[record]["protocol"] = stated
            elif who == "silo" and not type(answer).introduces:
                assert differences(answer, read(answer, message)) == [], "said before, in an answer to prepare"
                continue
            other = "silo" if who == "server" else "server"
            todo = {"theirs": f"update fedsynth at the {who}", "ours": f"update fedsynth at the {other}"}
            theirs, ours = f"the {who} speaks {spoken} (fedsynth 0.9.1)", f"this {other} speaks protocol {PROTOCOL}"
            own = __version__ if other == "server" else installed_version()
            said = f"{theirs}, {ours} (fedsynth {own}): {todo.get(behind, 'install the same fedsynth at both')}"
            with pytest.raises(MessageError, match=re.escape(said)):
                read(example, message)


@pytest.mark.parametrize("stated", ["", "1.0\n", "x" * 41, 3, None, ["1"]])
def test_a_version_that_could_be_none_is_not_repeated(stated: Any) -> None:
    example = EXAMPLES["describe"].answer
    message = sent(example)
    assert read(example, message).version == installed_version()
    del message.content["silo"]["version"]
    if stated is not None:
        message.content["silo"]["version"] = stated
    assert read(example, message).version == ""


@pytest.mark.parametrize("name", BOTH)
def test_message_without_content_is_refused(name: str) -> None:
    error = Message(Error(code=1, reason="broken"), reply_to=sent(DescribeRequest()))
    for message in (error, Message(RecordDict(), reply_to=sent(DescribeRequest()))):
        if list(travelling(BOTH[name])) and (name.endswith("request") or message is error):
            with pytest.raises(MessageError):
                read(BOTH[name], message)


@pytest.mark.parametrize(
    ("silo", "sender"),
    [
        ({"partition-id": 12}, Sender(12, "silo-12", 12)),
        ({"silo-name": "north"}, Sender(0, "north")),
        ({"partition-id": 3, "silo-name": "north"}, Sender(3, "silo-3", 3)),
        ({"silo-name": "x" * 64}, Sender(0, "x" * 64)),
        ({"silo-name": "x" * 65}, Sender(77, "node-77")),
        (None, Sender(77, "node-77")),
        ({"partition-id": "three"}, Sender(77, "node-77")),
        ({"partition-id": True}, Sender(77, "node-77")),
        ({"partition-id": -1}, Sender(77, "node-77")),
        ({"silo-name": "two\nlines"}, Sender(77, "node-77")),
    ],
)
def test_senders(silo: dict[str, Any] | None, sender: Sender) -> None:
    content = RecordDict() if silo is None else RecordDict({"silo": ConfigRecord(silo)})
    assert sender_of(Message(content, reply_to=sent(DescribeRequest()))) == sender


def test_sender_of_an_error_and_the_order_of_senders() -> None:
    error = Message(Error(code=1, reason="broken"), reply_to=sent(DescribeRequest()))
    assert sender_of(error) == Sender(77, "node-77")
    senders = [Sender.of_partition(k) for k in (10, 2, 0)]
    assert [sender.name for sender in sorted(senders)] == ["silo-0", "silo-2", "silo-10"]


def test_half_precision_is_for_the_journey_alone() -> None:
    for name, field in (("epsilon request", "samples"), ("epsilon answer", "epsilon")):
        example = replace(BOTH[name], wire_dtype="float16")
        message = sent(example)
        (record,) = transport.array_names(message)
        assert transport.array_record(message, record)[field].dtype == "float16"
        back = read(example, message)
        assert differences(example, back) == [field]
        assert torch.equal(getattr(back, field), getattr(example, field).half().float())


def test_what_requests_share_is_encoded_once_and_never_mixed_up() -> None:
    shared: Shared = {}
    samples, labels = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    asked = [EpsilonRequest(samples=samples, labels=labels, timestep=t) for t in (3, 4)]
    # Made and forgotten one after the other: a tensor gets the memory and the id of the one before it.
    messages = [request.to_message(70 + k, shared=shared) for k, request in enumerate(asked)]
    for value in range(50):
        request = EpsilonRequest(samples=torch.full((1, 1, 8, 8), float(value)), labels=labels[:1], timestep=5)
        messages.append(request.to_message(90, shared=shared))
        del request
    half = replace(asked[0], wire_dtype="float16").to_message(80, shared=shared)
    assert messages[0].content["arrays"] is messages[1].content["arrays"]
    assert [EpsilonRequest.from_message(message).timestep for message in messages[:2]] == [3, 4]
    assert [float(EpsilonRequest.from_message(m).samples.mean()) for m in messages[2:]] == [float(k) for k in range(50)]
    assert half.content["arrays"] is not messages[0].content["arrays"]
    assert asked[0].to_message(70).content["arrays"] is not messages[0].content["arrays"]


def test_views_are_on_the_memory_of_the_message() -> None:
    message = sent(EXAMPLES["sample"].answer, packed=False)
    images = EXAMPLES["sample"].request.reader()(message).images  # type: ignore[attr-defined]
    (array,) = message.content.array_records["arrays"].values()
    assert images.data_ptr() == transport.peek(array).data_ptr()


@pytest.mark.parametrize("name", BOTH)
def test_bad_values_are_refused_by_the_name_of_their_field(name: str) -> None:
    example = BOTH[name]
    rows = [bad for bad in bad_values(example) if getattr(example, bad.field) is not None]
    accepted, unnamed = [], []
    tracemalloc.start()
    for bad in rows:
        message = sent(example, packed=False)
        bad.spoil(message)
        try:
            read(example, message)
        except MessageError as error:
            if bad.said not in str(error) or len(str(error)) > 400:
                unnamed.append((bad.field, bad.name, str(error)))
        else:
            accepted.append((bad.field, bad.name))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A silo whose images are all unlabelled describes itself without classes.
    assert accepted == ([("spec", "classes []")] if name == "describe answer" else [])
    assert unnamed == []
    assert peak < 2**25, "a header that claims a huge array takes no memory"
    assert {bad.field for bad in rows} == {
        info.name for info, _ in travelling(example) if getattr(example, info.name) is not None
    }


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_messages_raise_one_kind_of_error(name: str, side: str) -> None:
    usable = survivors_of(name, side, 300)  # 20,000 in tests/long
    assert 0 < usable < 300


@dataclass(frozen=True, kw_only=True, eq=False)
class NewRequest(Request[Answer]):
    """A message that is declared here and nowhere else."""

    kind: ClassVar[str] = "query.new"

    number: int = setting(whole(1))
    dropout: float = setting(real(0, 1), 0.5)

    def reader(self) -> Reader[Answer]:
        return Answer.from_message


def test_a_field_is_declared_in_one_place() -> None:
    example = NewRequest(number=3, dropout=0.25)
    assert dict(sent(example).content.config_records["config"]) == {"protocol": PROTOCOL, "number": 3, "dropout": 0.25}
    assert differences(example, read(example, through_flower(sent(example)))) == []
    assert read(example, sent(replace(example, dropout=None))).dropout == 0.5
    refused = 0
    for bad in bad_values(example):
        message = sent(example)
        bad.spoil(message)
        with pytest.raises(MessageError, match=bad.said or None):
            read(example, message)
        refused += bad.field == "dropout"
    assert refused > 5
    with pytest.raises(MessageError, match=re.escape("dropout = 1.5: must be finite and >= 0 and <= 1")):
        read(example, sent(replace(example, dropout=1.5)))


def test_the_page_of_messages_lists_every_question() -> None:
    page = (Path(__file__).parents[2] / "docs" / "messages.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    assert {request.__module__ for request in REQUESTS} | {"fedsynth.messages.envelope"} == listed
