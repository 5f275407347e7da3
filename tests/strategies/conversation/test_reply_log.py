from __future__ import annotations

from hand_made import bare_reply, error_reply, request_to

from strategies.conversation.reply_log import LONGEST_REASON, ReplyLog


def asked(names: dict[int, str]) -> ReplyLog:
    reply_log = ReplyLog(names)
    reply_log.ask("train")
    return reply_log


def test_answers_are_noted_with_time_loss_and_why_they_do_not_count() -> None:
    reply_log = asked({5: "north", 6: "south", 7: "west"})
    reply_log.heard(5, bare_reply(request_to(5), loss=0.25))
    reply_log.heard(6, bare_reply(request_to(6), loss=[0.25]))
    reply_log.heard(7, error_reply(request_to(7), "x"))
    reply_log.leave_out(7, "x" * 1000)
    row = reply_log.row()
    assert list(row) == ["north", "south", "west"]
    assert min(noted["seconds"] for noted in row.values()) >= 0
    assert row["north"]["loss"] == 0.25
    assert set(row["south"]) == {"seconds"}, "a loss that is no number is none"
    assert row["west"]["left-out"] == "x" * LONGEST_REASON


def test_silent_silos_are_named_and_the_next_exchange_starts_afresh() -> None:
    reply_log = asked({5: "north"})
    assert reply_log.missed([6, 5]) == "north, node-6"
    assert reply_log.row() == {"node-6": {"left-out": "no answer in time"}, "north": {"left-out": "no answer in time"}}
    reply_log.ask("evaluate")
    assert reply_log.row() == {}
    last = reply_log.last()
    assert list(last) == ["north"], "those that take part"
    assert last["north"].message == "train"


def test_silos_are_told_by_name_once_it_is_known() -> None:
    reply_log = asked({})
    reply_log.heard(6, bare_reply(request_to(6)))
    assert list(reply_log.last()) == ["node-6"]
    reply_log.names = {6: "south"}
    assert list(reply_log.last()) == ["south"]
    assert list(reply_log.row()) == ["south"]
