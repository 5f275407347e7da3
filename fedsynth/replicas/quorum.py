"""How many equal statements make a certificate, and whose turn it is to send the arrays."""

from __future__ import annotations

from typing import Literal

Rule = Literal["byzantine", "majority"]


def quorum(aggregators: int, rule: Rule) -> int:
    """Return q, the equal statements that certify a round.

    ``byzantine``: with f = ⌊(m - 1) / 3⌋ liars, q = ⌊(m + f) / 2⌋ + 1: two groups of q share an honest aggregator,
    which signs one statement a round, so that not even a lying coordinator gets two certificates. ``majority``: with
    m = 2f + 1 aggregators, q = f + 1: one of q is honest, so the result is right for its roster, but two rosters may be
    certified; a silo that sees the other one in the next round refuses.

    Args:
        aggregators: m >= 1.
        rule: which of the two.
    """
    return (aggregators + faults_tolerated(aggregators, rule)) // 2 + 1 if rule == "byzantine" else aggregators // 2 + 1


def faults_tolerated(aggregators: int, rule: Rule) -> int:
    """Return f, the aggregators that may be silent or lie; with q liars who agree, a certificate says what they say."""
    return (aggregators - 1) // (3 if rule == "byzantine" else 2)


def owners(server_round: int, aggregators: int) -> list[int]:
    """Return the positions of the aggregators in the order in which they are asked for a round's arrays.

    Args:
        server_round: 1 for the first.
        aggregators: m >= 1.
    """
    return [(server_round + k) % aggregators for k in range(aggregators)]
