"""Weights that travel in shards between real silos and their link, over TLS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deployed import deployed, same_run_in_process
from tiny_runs import images_of

from fedsynth.policy import SiloPolicy

SILOS = {"east": (0, 1), "north": (0, 1), "south": (0, 1)}


def test_shards_over_a_link_leave_nothing_and_make_the_images_of_a_run_in_one_process(tmp_path: Path) -> None:
    policy: dict[str, Any] = {"answers": (*SiloPolicy().answers, "train"), "count_noise": 0.0}
    with deployed(tmp_path, SILOS, **policy) as link:
        link.start_run("shards", strategy="fedavg", num_rounds=2, train_steps=4, num_samples=6, max_message_mb=0.02)
        run = link.finish_run("shards")
        assert "shards, above max-message-mb = 0.02" in run.log.read_text()
        assert not run.spool.exists()
        audits = [*link.folder.rglob("audit.jsonl")]
        assert len(audits) == 3
        for audit in audits:
            kinds = [json.loads(line)["message"] for line in audit.read_text().splitlines()]
            shards = kinds.count("query.put_shard") // 2
            assert shards > 1
            assert kinds.count("query.get_shard") == 2 * shards
            assert (kinds.count("query.train_shards"), kinds.count("train")) == (2, 0)
        assert not [path for path in link.folder.rglob("shard-*") if path.is_file()]
        assert images_of(run) == images_of(same_run_in_process(run, link, list(SILOS)))
