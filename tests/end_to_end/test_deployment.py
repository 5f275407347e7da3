"""A link with TLS and three real silos of different classes, through the commands of the documentation.

The silos are warm: Flower's own way of a process for every message takes minutes, and is tested in tests/deployment.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import Deployment, classes_of, deployed
from real_silos import write_digits

SILOS = {"north": (0, 1, 2), "south": (0, 1, 2), "east": (2, 3)}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployment"), SILOS) as link:
        yield link


def test_silos_make_a_dataset_of_the_union_of_all_classes_in_secure_sums(link: Deployment) -> None:
    # All three hold class 2 alone: holders draw the images of the others.
    sums = {"secure_aggregation": "true", "few_holders": "pooled", "screening": "true"}
    run = link.run("dfd", dfd_rounds=2, **sums)
    assert classes_of(run) == {"0": 15, "1": 15, "2": 15, "3": 15}
    rows = run.read_metrics()
    assert [row["round"] for row in rows] == [1, 2]
    assert all(sorted(row["attendance"]) == ["east", "north", "south"] for row in rows)
    assert not [was for row in rows for was in row["attendance"].values() if "left-out" in was]
    assert run.report.is_file()
    assert json.loads(run.status.read_text())["state"] == "finished"
    log = link.log("north")
    assert "north: query.masked, round 2" in log
    assert "query.reveal" in log
    assert "query.epsilon" not in log
    card = (run.synthetic / "README.md").read_text()
    assert "each silo checked its own model before the rounds" in card
    assert "class 0, 1, 3: too few silos hold it" in card


def test_silo_without_a_registered_key_is_refused(link: Deployment) -> None:
    link.command("silo", "init", "--folder", "silo-stranger")
    link.start_silo("stranger", write_digits(link.folder / "strange", (0, 1), 3))
    assert link.ended("stranger") != 0
    assert "305" in link.log("stranger")


def test_secrets_are_readable_by_their_owner_alone(link: Deployment) -> None:
    secrets = [*link.folder.glob("link/*.key"), *link.folder.glob("silo-*/*.key")]
    assert len(secrets) >= 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_stopped_commands_leave_nothing_running(link: Deployment) -> None:
    for name in (*SILOS, "link"):
        link.stop(name)
    assert [process.cmdline() for process in link.left()] == []


def test_state_lies_where_the_silo_said(link: Deployment) -> None:
    models = {path.parents[1].name for path in Path(link.folder).glob("silo-*/state/*/models/*")}
    assert models == set(SILOS)


def test_every_silo_has_an_audit_of_the_run(link: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    for name in SILOS:
        link.command("silo", "audit", "--folder", f"silo-{name}")
        said = capsys.readouterr().out
        assert "chain  whole: every line follows from the one before" in said
        assert "describe 1, prepare " in said
        assert "noise queries " in said
