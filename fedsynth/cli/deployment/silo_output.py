"""What Flower's SuperNode says of its connection, in words for whoever looks after a silo."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from fedsynth.cli.deployment.silo_connection import ConnectionState

logger = logging.getLogger("fedsynth")

_CONNECTED = re.compile(r"SuperNode ID: \d+")
_LOST, _FOUND = "Connection attempt failed, retrying in", "Connection successful after"
_REFUSED = re.compile(r"Exit Code: 305\b")
_REASONS = {
    "[code: 2004]": "the silo's key is not registered at this link: send silo.pub to its operator, and start again when"
    " it is",
    "CERTIFICATE_VERIFY_FAILED": "ca.crt is not this link's, or the link's certificate is not for this address: ask"
    " its operator for ca.crt and the address, and compare the fingerprint by telephone",
}
"""What stands in the SuperNode's last words -> what it means."""


class SuperNodeOutput:
    """Reads the lines of a SuperNode, and says what they mean once each.

    Args:
        name: of the silo.
        note: is told how the silo stands with its link, and why where that is known.
    """

    def __init__(self, name: str, note: Callable[[ConnectionState, str], None] = lambda state, why: None) -> None:
        self._name = name
        self._note = note
        self._said: set[str] = set()
        self._is_connected = False
        self.is_ending = False
        """Whether the SuperNode has said that it ends by itself, since it was not let in."""

    def __call__(self, line: str) -> None:
        """Take one line, without its end."""
        if _CONNECTED.search(line):
            self._is_connected = True
            self._note("connected", "")
            self._say(logging.INFO, f"connected as {self._name}; waiting for runs; Ctrl-C stops it")
        # Later such a line can come of a program that a run has brought, on whose word no silo ends.
        if not self._is_connected and _REFUSED.search(line):
            self.is_ending = True
        # Before that, such a line can be of the silo's own processes, which look for each other.
        if self._is_connected and (_LOST in line or _FOUND in line):
            self._note("connected" if _FOUND in line else "interrupted", "")
        for mark, reason in _REASONS.items():
            if self.is_ending and mark in line:
                self._note("refused", reason)
                self._say(logging.ERROR, reason)

    def _say(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.log(level, "%s", text)
