"""Silos that die, come late, are slow or never come, for real."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deployed import Deployment, classes_of, deployed
from real_silos import write_digits

from fedsynth.output import RunFolder


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A link with three silos that stay for all tests, in their order."""
    silos = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}
    with deployed(tmp_path_factory.mktemp("absent"), silos) as link:
        yield link


def left_out(run: RunFolder, silo: str) -> list[Any]:
    """For every round that asked the silo why it was left out; None: it was not."""
    return [row["attendance"][silo].get("left-out") for row in run.read_metrics() if silo in row["attendance"]]


def test_silo_killed_in_a_round_is_named_and_the_run_goes_on(link: Deployment) -> None:
    link.start_run("gone", dfd_rounds=12)
    link.wait("gone", lambda: link.rounds_done("gone") >= 2)
    link.kill("north")
    run = link.finish_run("gone")
    absent = left_out(run, "north")
    assert absent[:2] == [None, None]
    assert absent[-1]
    assert "north" in run.log.read_text().split("left out")[0].splitlines()[-1]
    assert list(classes_of(run)) == ["0", "1", "2", "3"]


def test_late_silo_is_waited_for(link: Deployment) -> None:
    link.start_run("late", strategy="fedavg")
    link.wait("late", lambda: "waiting for 3 silos" in link.log("late"))
    link.start_silo_of("north")
    run = link.finish_run("late")
    assert sorted(run.read_metrics()[0]["attendance"]) == ["east", "north", "south"]
    assert classes_of(run) == {"0": 15, "1": 15, "2": 15, "3": 15}
    assert "north: train, round 2 answered after" in link.log("north")


def test_silo_that_never_comes_and_one_that_trusts_another_link_end_with_a_message(link: Deployment) -> None:
    link.start_run("short", num_clients=4, node_timeout=5)
    link.command("link", "init", "--folder", "other")
    link.command("silo", "init", "--folder", "silo-stranger")
    data = write_digits(link.folder / "strange", (0, 1), 3)
    link.start_silo("stranger", data, authority="other/ca.crt")
    assert link.ended("stranger") != 0
    assert "305" in link.log("stranger")
    assert link.ended("short") != 0
    assert "3 of num-clients = 4 silos connected within node-timeout = 5 s" in link.log("short")


def test_slow_silo_is_left_out_of_its_rounds_by_name(link: Deployment) -> None:
    link.start_run("slow", dfd_rounds=6, round_timeout=15.0)
    link.wait("slow", lambda: link.rounds_done("slow") >= 1)
    with link.paused("north"):
        run = link.finish_run("slow")
    assert "no answer in time from north" in run.log.read_text()
    assert "no answer in time" in left_out(run, "north")
    assert list(classes_of(run)) == ["0", "1", "2", "3"]
