"""A silo's clock beside its SuperLink's: Flower refuses the signatures of one that is off, and the SuperNode ends
without saying why.
"""

from __future__ import annotations

import http.client
import ssl
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedsynth.errors import UserError

MOST_BEHIND, MOST_AHEAD = 305.0, 5.0
"""Seconds within which Flower accepts the time of a signature."""


def check_clock(address: str, authority: Path) -> None:
    """Refuse to start with a clock with which Flower would refuse the silo, if the SuperLink can be asked.

    Args:
        address: ``HOST:PORT`` of the SuperLink.
        authority: certificate that vouches for it.

    Raises:
        UserError: says how far the clock is off.
    """
    ahead = seconds_ahead(address, authority)
    if ahead is None or -MOST_BEHIND <= ahead <= MOST_AHEAD:
        return
    raise UserError(
        f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the clock of {address}:"
        f" Flower accepts {MOST_AHEAD:.0f} s ahead to {MOST_BEHIND:.0f} s behind; run NTP on both machines"
    )


def seconds_ahead(address: str, authority: Path, timeout: float = 5.0) -> float | None:
    """Return how far this machine's clock is ahead of the SuperLink's (negative: behind), to half a second.

    Returns:
        None where the SuperLink does not answer within ``timeout`` seconds.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        with closing(http.client.HTTPSConnection(address, timeout=timeout, context=context)) as connection:
            connection.request("HEAD", "/")
            date = connection.getresponse().headers["Date"]
            now = time.time()
        # The header drops the fraction of a second.
        return now - parsedate_to_datetime(date).timestamp() - 0.5
    except (OSError, http.client.HTTPException, TypeError, ValueError):
        return None
