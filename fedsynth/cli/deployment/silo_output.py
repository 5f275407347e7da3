"""What Flower's SuperNode says of its connection, in words for whoever looks after a silo."""

from __future__ import annotations

import logging
import re

logger = logging.getLogger("fedsynth")

_CONNECTED = re.compile(r"SuperNode ID: \d+")
_ENDING = re.compile(r"Exit Code: \d{3}")
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
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()
        self.is_ending = False
        """Whether the SuperNode has said that it ends by itself."""

    def __call__(self, line: str) -> None:
        """Take one line, without its end."""
        if _CONNECTED.search(line):
            self._say(logging.INFO, f"connected as {self._name}; waiting for runs; Ctrl-C stops it")
        self.is_ending = self.is_ending or bool(_ENDING.search(line))
        for mark, reason in _REASONS.items():
            # Only of a SuperNode that ends: what comes later can be in a message of a run.
            if self.is_ending and mark in line:
                self._say(logging.ERROR, reason)

    def _say(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.log(level, "%s", text)
