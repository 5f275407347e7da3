from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsynth
from fedsynth import __version__
from fedsynth.cli.deployment import ray_cluster
from fedsynth.cli.deployment.flower import flower_environment
from fedsynth.cli.deployment.ray_cluster import Cluster, cluster_at
from fedsynth.cli.run import gpu_share
from fedsynth.config import RunConfig
from fedsynth.errors import UserError

ADDRESS = "10.0.0.5:6379"
WHOLE = {"address": "10.0.0.6", "cpus": 4.0, "gpus": 1.0, "version": __version__, "missing": []}


def asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *machines: dict[str, Any], **keys: str
) -> tuple[Cluster, list[str]]:
    """What a cluster of these machines is found to have, and the paths that they were asked for."""
    seen: list[str] = []

    def answer(address: str, paths: list[str], environment: object) -> list[dict[str, Any]]:
        assert address == ADDRESS
        assert all(Path(path).exists() for path in paths[:2]), "marks in FLWR_HOME and state-dir"
        seen.extend(paths)
        return [{**machine, "missing": [paths[place] for place in machine["missing"]]} for machine in machines]

    monkeypatch.setattr(ray_cluster, "_ask", answer)
    given = {"ray-address": ADDRESS, "state-dir": str(folder / "state"), **keys}
    return cluster_at(RunConfig.from_run_config(given), folder / "home", {}), seen


def test_what_a_cluster_has_is_added_up_and_its_marks_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, paths = asked(tmp_path, monkeypatch, WHOLE, {**WHOLE, "cpus": 8.0, "gpus": 0.0})
    assert cluster == Cluster(2, 12, 1)
    assert len(paths) == 2
    assert [*(tmp_path / "home").iterdir(), *(tmp_path / "state").iterdir()] == []


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"version": "0.0.9"}, rf"machine 10\.0\.0\.6 has fedsynth 0\.0\.9, this one {__version__}: install the same"),
        ({"problem": "no module\x1b"}, r"machine 10\.0\.0\.6: no module\\x1b; every machine needs the same Python"),
        ({"missing": [0]}, r"does not see FLWR_HOME = '.*home': put it into a folder that all machines share"),
        ({"missing": [1]}, r"does not see state-dir = '.*state': put it"),
        ({"missing": [2]}, r"does not see data-root = '/images': put it"),
        ({"cpus": 0.0}, r"ray-address = '10\.0\.0\.5:6379': the cluster has no CPU for a silo"),
    ],
)
def test_a_machine_that_cannot_take_part_is_named_with_what_it_lacks(
    machine: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"dataset": "imagefolder", "data-root": "/images"}
    with pytest.raises(UserError, match=said):
        asked(tmp_path, monkeypatch, {**WHOLE, **machine}, **images)


def test_silos_share_the_gpus_of_the_cluster_and_not_of_this_machine() -> None:
    config = RunConfig.from_run_config({"num-clients": 8})
    assert gpu_share(config, Cluster(2, 16, 2)) == 0.2499
    assert gpu_share(config, Cluster(2, 16, 0)) == 0.0


def test_ray_is_told_where_to_go_with_the_users_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    there = flower_environment(ADDRESS)
    assert there["RAY_ADDRESS"] == ADDRESS
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & there.keys()
    assert flower_environment()["RAY_ADDRESS"] == "local"


def test_a_run_in_this_process_refuses_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ray-address = '10\.0\.0\.5:6379': here the silos work in this process"):
        fedsynth.synthesise(ray_address=ADDRESS, output_dir=tmp_path)
    with pytest.raises(UserError, match=r"ray-address = 'nowhere': must be HOST:PORT, such as '10\.0\.0\.5:6379'"):
        RunConfig.from_run_config({"ray-address": "nowhere"})
