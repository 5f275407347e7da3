"""A simulation on a Ray cluster of two nodes that somebody else has started, with a token of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from deployed import LIMIT_SECONDS

from fedsynth.cli.deployment.flower import end, free_ports
from fedsynth.output import RunFolder

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
NODES = """
import json, ray
from ray._private.state import actors

ray.init(logging_level="ERROR")
alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
print(json.dumps({"alive": alive, "used": sorted({actor["Address"]["NodeID"] for actor in actors().values()})}))
"""


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """Environment of a user who knows the token; ``RAY_ADDRESS`` says where the head listens."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (port,) = free_ports(1)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**own, **token, "PYTHONPATH": str(ROOT)}
    each = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--block"]
    # A folder of its own, or Ray notes the cluster for all programs of this machine; short, for its sockets.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, contextlib.ExitStack() as stack:
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        for number, words in enumerate((head, [f"--address=127.0.0.1:{port}"]), 1):
            stack.enter_context(started([RAY, "start", *words, *each], environment))
            wait_for_nodes(number, {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"})
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            end(family, 20.0)


def nodes(environment: dict[str, str]) -> dict[str, list[str]]:
    asked = subprocess.run([sys.executable, "-c", NODES], env=environment, capture_output=True, text=True, check=False)
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else {"alive": [], "used": []}


def wait_for_nodes(number: int, environment: dict[str, str]) -> None:
    for _ in range(60):
        if len(nodes(environment)["alive"]) == number:
            return
        time.sleep(1.0)
    raise TimeoutError(f"no {number} nodes")


TINY = {"num-clients": 3, "partition": "iid", "samples-per-client": 60, "block-out-channels": "8,8"}
TINY |= {"dfd-rounds": 4, "train-steps": 6, "num-samples": 30, "evaluate": False, "screening": False}


def fedsynth(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    options = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in TINY.items()]
    own = {**environment, "FLWR_HOME": str(folder / ".flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, "-m", "fedsynth.cli", *words, *options],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_silos_work_on_every_node_of_a_cluster_which_stays(cluster: dict[str, str], tmp_path: Path) -> None:
    address = cluster.pop("RAY_ADDRESS")
    run = "run", "--run-name", "run"
    strangers = {**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    refused = fedsynth(tmp_path, strangers, *run, "--ray-address", address)
    assert refused.returncode == 2
    assert f"ray-address = '{address}': " in refused.stderr
    assert not (tmp_path / "runs" / "run").exists()
    done = fedsynth(tmp_path, cluster, *run, "--ray-address", address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Ray cluster {address}: 2 machines, 2 CPUs, 0 GPUs" in done.stdout
    folder = RunFolder(tmp_path / "runs" / "run")
    assert folder.read_results()
    assert {row["seconds"] >= 0 for row in folder.read_metrics()} == {True}
    found = nodes({**cluster, "RAY_ADDRESS": address})
    assert len(found["alive"]) == 2
    assert sorted(found["alive"]) == found["used"]


def test_a_sweep_sends_its_runs_there_one_after_the_other(cluster: dict[str, str], tmp_path: Path) -> None:
    address = cluster.pop("RAY_ADDRESS")
    methods = ("dfd", "pooled")
    rows = "".join(f'[[method]]\nname = "{name}"\nstrategy = "{name}"\n' for name in methods)
    (tmp_path / "two.toml").write_text(f"seeds = [0]\n{rows}", encoding="utf-8")
    done = fedsynth(tmp_path, cluster, "sweep", "two.toml", "--ray-address", address)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in methods:
        assert RunFolder(tmp_path / "runs" / "two" / f"{name}-0").read_results()
        said = (tmp_path / "runs" / "two" / "logs" / f"{name}-0.txt").read_text(encoding="utf-8")
        assert f"Ray cluster {address}: 2 machines, 2 CPUs, 0 GPUs" in said
    found = nodes({**cluster, "RAY_ADDRESS": address})
    assert len(found["alive"]) == 2
    assert sorted(found["alive"]) == found["used"]
