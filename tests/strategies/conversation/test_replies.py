from __future__ import annotations

import pytest
from flwr.app import Message
from hand_made import bare_reply, error_reply, request_to
from strategies.conversation.replies import malformed_named, num_examples, seconds_worked, usable

from fedsynth.errors import RunError


def good(node: int) -> Message:
    return bare_reply(request_to(node), num_examples=1)


def test_errors_are_left_out_and_logged_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    replies = [good(1), error_reply(request_to(2), "silo-2: OSError: disk gone"), good(3)]
    assert [reply.metadata.src_node_id for reply in usable(replies, 2)] == [1, 3]
    assert "answer left out: silo-2: OSError: disk gone" in caplog.text


def test_too_few_say_the_first_reason_after_all_were_seen() -> None:
    replies = [error_reply(request_to(1), "first"), good(2), error_reply(request_to(3), "second")]
    seen = []
    with pytest.raises(RunError, match="1 usable answers, 2 needed: first"):
        seen.extend(usable(replies, 2))
    assert len(seen) == 1


def test_silence_names_the_time_limit() -> None:
    with pytest.raises(RunError, match="0 usable answers, 1 needed: no answer in time; see reply-timeout"):
        list(usable([], 1))
    assert list(usable([], 0)) == []


def test_dead_worker_aborts_at_once() -> None:
    taken = []

    def replies() -> object:
        for reply in (good(1), error_reply(request_to(2), "<class 'ray.exceptions.ActorDiedError'>"), good(3)):
            taken.append(reply.metadata.src_node_id)
            yield reply

    with pytest.raises(RunError, match="a simulation worker died"):
        list(usable(replies(), 0))
    assert taken == [1, 2]


def test_answers_are_passed_on_one_at_a_time() -> None:
    taken = []

    def replies() -> object:
        for node in (1, 2):
            taken.append(node)
            yield good(node)

    stream = usable(replies(), 2)
    next(stream)
    assert taken == [1]


def test_number_of_examples() -> None:
    assert num_examples(good(1), 1) == 1
    for wrong in (0, -3, 1.5, 8, None):
        metrics = {"loss": 2.0} if wrong is None else {"num_examples": wrong}
        with pytest.raises(ValueError, match=r"num-examples = .* from 1 to max-silo-images = 7"):
            num_examples(bare_reply(request_to(1), **metrics), 7)


def test_seconds_default_to_none_worked() -> None:
    assert seconds_worked(bare_reply(request_to(1), seconds=2.5)) == 2.5
    assert seconds_worked(good(1)) == 0.0


@pytest.mark.parametrize("error", [KeyError("metrics"), ValueError("no list"), OverflowError("inf")])
def test_malformed_answers_name_their_silo(error: Exception) -> None:
    reply = bare_reply(request_to(1), {"silo-name": "clinic"})
    with pytest.raises(RunError, match="clinic: unusable answer: "), malformed_named(reply):
        raise error
