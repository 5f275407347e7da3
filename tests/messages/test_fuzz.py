"""Damaged messages raise one kind of error; 20,000 of each do in tests/long."""

from __future__ import annotations

import pytest
from message_examples import EXAMPLES
from message_fuzzing import survivors_of

MUTATIONS = 500


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_messages_raise_one_kind_of_error(name: str, side: str) -> None:
    usable = survivors_of(name, side, MUTATIONS)
    assert 0 < usable < MUTATIONS
