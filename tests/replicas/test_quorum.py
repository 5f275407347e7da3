from __future__ import annotations

from itertools import combinations

import pytest

from fedsynth.replicas.quorum import faults_tolerated, owners, quorum


def test_one_aggregator_is_a_quorum_by_itself() -> None:
    assert (quorum(1, "byzantine"), quorum(1, "majority")) == (1, 1)
    assert [quorum(m, "byzantine") for m in (2, 3, 4, 5, 7, 8, 10)] == [2, 2, 3, 4, 5, 6, 7]
    assert [quorum(m, "majority") for m in (2, 3, 4, 5, 7, 8)] == [2, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("m", range(1, 9))
def test_f_faults_neither_stop_a_round_nor_make_two(m: int) -> None:
    f, q = faults_tolerated(m, "byzantine"), quorum(m, "byzantine")
    assert m - f >= q, "the honest ones are enough"
    groups = [set(group) for group in combinations(range(m), q)]
    # Liars sign twice; an honest one does not: two certificates need an honest one in both groups.
    assert min(len(one & other) for one in groups for other in groups) > f
    f, q = faults_tolerated(m, "majority"), quorum(m, "majority")
    assert m - f >= q > f, "one of q is honest"


def test_every_aggregator_is_the_first_owner_in_turn() -> None:
    assert [owners(number, 3) for number in (1, 2, 3)] == [[1, 2, 0], [2, 0, 1], [0, 1, 2]]
