"""As tests/messages/test_messages.py, with as many mutations as find what is rare."""

from __future__ import annotations

import pytest
from message_examples import EXAMPLES
from message_fuzzing import survivors_of

MUTATIONS = 20_000


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_messages_raise_one_kind_of_error(name: str, side: str) -> None:
    assert 0 < survivors_of(name, side, MUTATIONS, seed=1) < MUTATIONS
