from __future__ import annotations

import time

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

from fedsynth.errors import UserError
from strategies.conversation import fast_replies
from strategies.conversation.fast_replies import take_replies_fast


def test_the_rest_of_an_answer_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_objects, "__kwdefaults__", pull_objects.__kwdefaults__)
    looks: list[float] = []

    def look(name: str) -> bytes:
        looks.append(time.monotonic())
        if len(looks) == 1:
            raise ObjectUnavailableError(name)
        return b"content"

    take_replies_fast()
    assert pull_objects(["a"], look) == {"a": b"content"}
    # Flower would have slept 0.8 s at least.
    assert 0.8 * fast_replies.FIRST_WAIT <= looks[1] - looks[0] < 0.7


def test_another_version_of_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pull_objects.__kwdefaults__
    monkeypatch.setattr(fast_replies, "version", lambda name: "1.40.0")
    with pytest.raises(UserError, match=r"fast-replies = true needs Flower 1\.41\.0, and this is 1\.40\.0"):
        take_replies_fast()
    assert pull_objects.__kwdefaults__ == before
