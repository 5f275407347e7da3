"""Real silos that aggregate, of which one is silent, comes back late, and is killed in a round, over TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployed import deployed

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


def signers(run: RunFolder) -> list[int]:
    """Signatures of every round's certificate so far; none: it is void."""
    return [int(row.get("signers", 0)) for row in run.read_metrics()]
