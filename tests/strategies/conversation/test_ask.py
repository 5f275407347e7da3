from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import pytest
import torch
from flwr.app import Message
from hand_made import StubGrid, bare_reply, error_reply, reply, request_to

from fedsynth.errors import RunError
from fedsynth.messages import EpsilonAnswer, EpsilonRequest, MessageError
from strategies.conversation.ask import DrivenRound, Question, Quorum, ask, replies_needed
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange

CENSUS = Census(Member(50 - k, f"silo-{k}", 1, [1]) for k in range(3))
Spoil = dict[int, Callable[[Message], Message | None]]


def question(silo: int, timestep: int = 9) -> Question[EpsilonAnswer]:
    labels = torch.zeros(2, dtype=torch.int64)
    return silo, EpsilonRequest(samples=torch.zeros(2, 1, 4, 4), labels=labels, timestep=timestep)


QUESTIONS = [question(k) for k in range(3)]
SEVERAL = [question(0, 9), question(0, 7), question(0, 5), question(1, 3)]


def answer(message: Message) -> Message:
    """Predicts silo + timestep / 1000."""
    value = 50 - message.metadata.dst_node_id + int(message.content.config_records["config"]["timestep"]) / 1000
    return reply(message, "epsilon", {"e": torch.full((2, 1, 4, 4), value)}, seconds=0.5)


def exchange_with(spoil: Spoil) -> Exchange:
    """Silos that answer well, except those in ``spoil``."""
    return Exchange(StubGrid([], lambda message: spoil.get(50 - message.metadata.dst_node_id, answer)(message)), 5.0)


def failing(reason: str) -> Callable[[Message], Message]:
    return lambda message: error_reply(message, reason)


def too_short(message: Message) -> Message:
    return reply(message, "epsilon", {"e": torch.zeros(1, 1, 4, 4)})


def values(answers: Iterable[tuple[int, EpsilonAnswer]]) -> list[tuple[int, float]]:
    return sorted((k, round(float(found.epsilon.mean()), 3)) for k, found in answers)


def test_replies_needed() -> None:
    quorums: tuple[Quorum, ...] = ("one", "half", "all")
    for min_replies, needed in (("auto", [1, 3, 5]), (2, [2, 2, 2]), (9, [5, 5, 5])):
        assert [replies_needed(min_replies, 5, quorum) for quorum in quorums] == needed  # type: ignore[arg-type]
    assert replies_needed("auto", 0, "one") == 0


def test_answers_come_read_and_with_the_index_of_their_silo() -> None:
    grid = StubGrid([], answer)
    found = list(ask(Exchange(grid, 5.0), QUESTIONS, CENSUS, needed=3))
    assert values(found) == [(0, 0.009), (1, 1.009), (2, 2.009)]
    assert {answer.seconds for _, answer in found} == {0.5}
    assert [message.metadata.dst_node_id for message in grid.requests] == [50, 49, 48]
    assert {message.metadata.ttl for message in grid.requests} == {5.0}
    several = ask(Exchange(grid, 5.0), SEVERAL, CENSUS, needed=2)
    assert values(several) == [(0, 0.005), (0, 0.007), (0, 0.009), (1, 1.003)]


def test_bad_answers_are_left_out_by_silo_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    exchange = exchange_with({0: too_short, 2: failing("silo-2: disk gone")})
    exchange.reply_log.names = {member.node_id: member.name for member in CENSUS}
    assert values(ask(exchange, QUESTIONS, CENSUS, needed=1)) == [(1, 1.009)]
    said = "answer has shape (1, 1, 4, 4), not (2, 1, 4, 4)"
    assert f"silo-0 left out: {said}" in caplog.text
    assert "answer left out: silo-2: disk gone" in caplog.text, "a reason that says its silo is not told twice"
    row = exchange.reply_log.row()
    assert [row[name].get("left-out") for name in ("silo-0", "silo-1", "silo-2")] == [said, None, "silo-2: disk gone"]


@pytest.mark.parametrize(
    ("spoil", "questions", "needed", "said"),
    [
        ({0: too_short, 2: too_short}, QUESTIONS, 2, r"1 usable answers, 2 needed: silo-[02]: answer has shape"),
        ({1: failing("gone")}, SEVERAL, 2, "1 usable answers, 2 needed: silo-1: gone"),
        (
            dict.fromkeys(range(3), lambda message: None),
            QUESTIONS,
            1,
            "0 usable .*: node-48: no answer in time; see reply-time",
        ),
    ],
)
def test_too_few_say_the_first_reason_after_all_were_seen(
    spoil: Spoil, questions: list[Question[EpsilonAnswer]], needed: int, said: str
) -> None:
    seen: list[tuple[int, EpsilonAnswer]] = []
    with pytest.raises(RunError, match=said):
        seen.extend(ask(exchange_with(spoil), questions, CENSUS, needed=needed, timeout=0.1))
    assert len(seen) == sum(k not in spoil for k, _ in questions)


def test_a_message_that_could_not_be_sent_is_not_said_to_be_late() -> None:
    class RefusingGrid(StubGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return [None for _ in messages]  # type: ignore[misc]

    exchange = Exchange(RefusingGrid([]), 5.0)
    with pytest.raises(
        RunError, match=r"0 usable answers, 1 needed: node-48: the message could not be sent; see the Su"
    ):
        list(ask(exchange, QUESTIONS, CENSUS, needed=1))


def test_the_asker_may_refuse_what_it_alone_can_judge_and_need_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def check(silo: int, answer: EpsilonAnswer) -> None:
        if answer.epsilon.mean() > 1.5:
            raise MessageError(f"too large, silo {silo}")

    found = ask(exchange_with({}), QUESTIONS, CENSUS, needed=2, check=check)
    assert [k for k, _ in values(found)] == [0, 1]
    assert "silo-2 left out: too large, silo 2" in caplog.text
    assert list(ask(exchange_with({}), QUESTIONS, CENSUS, needed=0, timeout=0.0)) == []


def test_before_names_are_known_a_silo_goes_by_its_own_word(caplog: pytest.LogCaptureFixture) -> None:
    spoil: Spoil = {0: lambda m: bare_reply(m, {"silo-name": "clinic"}), 1: failing("UserError: no images")}
    assert list(ask(exchange_with(spoil), QUESTIONS, Census.unknown([48, 49, 50]), needed=1))
    assert "clinic left out: epsilon is missing" in caplog.text
    assert "answer left out: UserError: no images" in caplog.text


class OneByOne(StubGrid):
    """Makes an answer only when it is pulled, and checks that the one before is gone by then."""

    last: weakref.ref[Message] | None = None
    read: weakref.ref[EpsilonAnswer] | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.requests = list(messages)
        return [str(number) for number in range(len(self.requests))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        number = next(iter(message_ids))
        made = self.make(self.requests[int(number)])
        made.metadata.__dict__["_reply_to_message_id"] = number
        return [made]

    def make(self, message: Message) -> Message:
        for before in (self.last, self.read):
            assert before is None or before() is None, "the answer before is still alive"
        made = answer(message)
        self.last = weakref.ref(made)
        return made


def test_no_answer_is_kept_alive() -> None:
    driven = DrivenRound(QUESTIONS, CENSUS, 1)
    asked, by_hand = OneByOne([]), OneByOne([])
    for grid, stream in (
        (asked, ask(Exchange(asked, 5.0), QUESTIONS, CENSUS, needed=3)),
        (by_hand, driven.answers(map(by_hand.make, driven), 3)),
    ):
        for _ in range(3):
            read = next(stream)[1]
            grid.read = weakref.ref(read)
            del read
        assert list(stream) == []


class TestDrivenRound:
    """Messages that somebody else sends."""

    def test_replies_are_paired_by_the_id_that_they_repeat(self) -> None:
        driven = DrivenRound([question(0, 9), question(0, 7), question(2, 5)], CENSUS, 3)
        assert driven.num_silos == 2
        assert values(driven.answers(map(answer, reversed(driven)), 2)) == [(0, 0.007), (0, 0.009), (2, 2.005)]
        # Flower gives ids to what it sends.
        driven = DrivenRound([question(0, 9), question(0, 7)], CENSUS, 1)
        for number, message in enumerate(driven):
            message.metadata.__dict__["_message_id"] = f"of flower {number}"
        assert values(driven.answers(map(answer, driven), 1)) == [(0, 0.007), (0, 0.009)]

    def test_a_reply_that_repeats_no_id_is_paired_by_node_where_there_is_no_doubt(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        driven = DrivenRound([question(0, 9), question(0, 7), question(2, 5)], CENSUS, 1)
        replies = [answer(message) for message in driven]
        for made in replies:
            made.metadata.__dict__["_reply_to_message_id"] = "something else"
        assert values(driven.answers(replies, 1)) == [(2, 2.005)]
        assert caplog.text.count("left out: not asked") == 2

    def test_a_stranger_and_a_repeated_reply_are_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        driven = DrivenRound([question(0)], CENSUS, 1)
        stranger = bare_reply(request_to(999), {"silo-name": "stranger"})
        with pytest.raises(RunError, match="0 usable answers, 1 needed"):
            list(driven.answers([stranger], 1))
        assert "stranger left out: not asked" in caplog.text
        assert values(driven.answers(map(answer, [*driven, *driven]), 1)) == [(0, 0.009)]
        assert "left out: it has answered this question already" in caplog.text
