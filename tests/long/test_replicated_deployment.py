"""Real silos and nodes that aggregate, of which one is silent, comes back late, or is killed in a round, over TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployed import Deployment, deployed

from fedsynth.output import RunFolder
from fedsynth.policy import SiloPolicy
from fedsynth.privacy.sums.key_files import KNOWN_FILE

SILOS = {"east": (0, 1), "north": (0, 1), "south": (0, 1)}


def test_one_silo_of_three_silent_then_slow_then_killed_leaves_every_round_certified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy: dict[str, Any] = {"answers": (*SiloPolicy().answers, "train", "aggregate")}
    with deployed(tmp_path, SILOS, **policy) as link:
        keys = link.folder / "link" / KNOWN_FILE
        # Of three, one fault needs the quorum of most; a rule with a state, which a silo that was away must be told.
        method = {"strategy": "fedavgm", "aggregators": "silos", "replica_quorum": "majority", "key_file": str(keys)}
        link.start_run("faults", **method, num_rounds=10, train_steps=100, reply_timeout=60.0)
        folder = RunFolder(link.folder / "runs" / "faults")
        link.wait("faults", lambda: link.rounds_done("faults") >= 1)
        with link.paused("north"):
            link.wait("faults", lambda: link.rounds_done("faults") >= 3)
        link.wait("faults", lambda: signers(folder)[3:].count(3) >= 1)
        link.kill("north")
        run = link.finish_run("faults")
        counts = signers(run)
        assert counts[0] == 3
        assert counts[2] == 2, "silent"
        assert 3 in counts[3:-1], "it has come back, with the certificates that it missed"
        assert counts[-1] == 2, "killed"
        assert len(counts) == 10, "no round is void"
        assert "north left out" in run.log.read_text()
        capsys.readouterr()
        link.command("audit", str(run.path), "--keys", str(keys))
        audited = capsys.readouterr().out
        assert "round  1: east (" in audited
        assert "signed by east, north, south" in audited
        assert audited.count("signed by east, south") == counts.count(2)
        assert "holds  every line" in audited


def audited(run: RunFolder, keys: Path, link: Deployment, capsys: pytest.CaptureFixture[str]) -> str:
    """What an audit says, of which everything holds."""
    capsys.readouterr()
    link.command("audit", str(run.path), "--keys", str(keys), "--recompute")
    out = capsys.readouterr().out
    assert "holds  every line" in out
    return out


def test_dfd_of_three_silos_is_certified_though_one_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy: dict[str, Any] = {"answers": (*SiloPolicy().answers, "aggregate"), "noise_queries_per_run": 100}
    with deployed(tmp_path, SILOS, **policy) as link:
        keys = link.folder / "link" / KNOWN_FILE
        method = {"strategy": "dfd", "aggregators": "silos", "replica_quorum": "majority", "key_file": str(keys)}
        link.start_run("dfd", **method, dfd_rounds=8, num_samples=10, reply_timeout=60.0, sampler="sde-dpmsolver++")
        folder = RunFolder(link.folder / "runs" / "dfd")
        link.wait("dfd", lambda: link.rounds_done("dfd") >= 3)
        link.kill("north")
        run = link.finish_run("dfd")
        counts = signers(folder)
        assert (counts[0], counts[-1], len(counts)) == (3, 2, 8), counts
        assert "north left out" in run.log.read_text()
        said = audited(run, keys, link, capsys)
        assert "dfd in 'dfd'" in said
        assert said.count("signed by east, south\n") == counts.count(2)


def test_three_nodes_certify_what_two_silos_train_though_one_of_them_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silos = {name: SILOS[name] for name in ("east", "north")}
    names = ("lab", "registry", "university")
    # Silos that do not aggregate need not answer that they would.
    with deployed(tmp_path, silos, aggregators=names, answers=(*SiloPolicy().answers, "train")) as link:
        keys = link.folder / "link" / KNOWN_FILE
        method = {"strategy": "fedavgm", "aggregators": "nodes", "num_aggregators": 3, "key_file": str(keys)}
        link.start_run("nodes", **method, num_clients=2, num_rounds=6, train_steps=60, reply_timeout=60.0)
        folder = RunFolder(link.folder / "runs" / "nodes")
        link.wait("nodes", lambda: link.rounds_done("nodes") >= 2)
        link.kill("registry")
        run = link.finish_run("nodes")
        counts = signers(folder)
        assert (counts[0], counts[-1], len(counts)) == (3, 2, 6), counts
        # Within the grace period after the quorum, or when Flower misses its heartbeat.
        log = run.log.read_text()
        assert "no answer in time from registry" in log or "registry left out" in log
        said = audited(run, keys, link, capsys)
        assert "keys   2 silos and 3 aggregators" in said
        assert said.count("signed by lab, university\n") == counts.count(2)


def signers(run: RunFolder) -> list[int]:
    """Signatures of every round's certificate so far; none: it is void."""
    return [int(row.get("signers", 0)) for row in run.read_metrics()]
