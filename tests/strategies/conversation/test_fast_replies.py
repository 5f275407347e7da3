from __future__ import annotations

import pytest
from flower_waits import comes_at_look, recorded_waits
from flwr.supercore.inflatable.inflatable_utils import pull_objects

from fedsynth import flower_version
from fedsynth.errors import UserError
from strategies.conversation.fast_replies import FIRST_WAIT, take_replies_fast


def test_the_rest_of_an_answer_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = recorded_waits(monkeypatch)
    take_replies_fast()
    assert pull_objects(["a"], comes_at_look(2)) == {"a": b"content"}
    # Flower adds or takes 20 %, at random.
    assert waits == [pytest.approx(FIRST_WAIT, rel=0.2)]


def test_another_version_of_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pull_objects.__kwdefaults__
    monkeypatch.setattr(flower_version, "version", lambda name: "1.40.0")
    with pytest.raises(UserError, match=r"fast-replies = true uses .* this is Flower 1\.40\.0: leave fast-replies out"):
        take_replies_fast()
    assert pull_objects.__kwdefaults__ == before
