"""How long Flower would wait between two looks for an object of a message."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError


def recorded_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that Flower would have waited, in order; it does not, and its defaults come back after the test."""
    waits: list[float] = []

    class Unwaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(pull, "__kwdefaults__", pull.__kwdefaults__)
    monkeypatch.setattr(inflatable_utils, "threading", SimpleNamespace(**{**vars(threading), "Event": Unwaited}))
    return waits


def comes_at_look(number: int) -> Callable[[str], bytes]:
    """A function that finds the object at that look and not before."""
    looks = iter(range(1, number + 1))

    def look(name: str) -> bytes:
        if next(looks) < number:
            raise ObjectUnavailableError(name)
        return b"content"

    return look
