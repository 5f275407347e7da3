"""A silo that is too slow, for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployed import Deployment, classes_of, deployed, left_out


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    silos = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}
    with deployed(tmp_path_factory.mktemp("slow"), silos) as link:
        yield link


def test_slow_silo_is_left_out_of_its_rounds_by_name(link: Deployment) -> None:
    link.start_run("slow", dfd_rounds=6, round_timeout=15.0)
    link.wait("slow", lambda: link.rounds_done("slow") >= 1)
    with link.paused("north"):
        run = link.finish_run("slow")
    assert "no answer in time from north" in run.log.read_text()
    assert "no answer in time" in left_out(run, "north")
    assert list(classes_of(run)) == ["0", "1", "2", "3"]
