"""Memory that would grow slowly, with every message or round."""

from __future__ import annotations

from pathlib import Path

from experiments.benchmarks.common import in_fresh_process
from experiments.benchmarks.large_weights import measure
from experiments.benchmarks.memory import GROWTH_LIMIT, ROUND_GROWTH_LIMIT
from experiments.benchmarks.soak import client_soak, server_soak


def test_server_that_averages_large_weights_holds_a_shard_of_every_silo_and_no_model(tmp_path: Path) -> None:
    measured = in_fresh_process(measure, "fedavg", 300.0, 6, 2, False, tmp_path)
    assert measured["model-bytes"] > 300e6
    # Six models would be 1.8 GB, a shard of each .38 GB. With pages of files: the model while a checkpoint is written.
    assert measured["peak-anonymous-bytes"] < measured["predicted-memory-bytes"] < 3.1 * measured["model-bytes"]
    assert measured["peak-bytes"] < measured["predicted-memory-bytes"] + 1.1 * measured["model-bytes"]
    assert measured["disk-bytes"] < measured["predicted-disk-bytes"]


def test_client_does_not_keep_its_messages() -> None:
    soak = in_fresh_process(client_soak, 60, every=2)
    assert soak.counts[-1] == 60
    # A few pages more or less weigh 17 times as much as over 1,000 messages; a kept message adds 10 kB.
    assert soak.growth < 8 * GROWTH_LIMIT


def test_server_does_not_keep_its_rounds() -> None:
    soak = in_fresh_process(server_soak, 60, every=2)
    assert soak.counts[-1] == 60
    # A kept set adds 1,200 kB a round.
    assert soak.growth < 8 * ROUND_GROWTH_LIMIT
