"""A stranger at the ports of a simulation's Ray, which runs whatever is sent to it."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from fedsynth.cli.deployment.flower import flower_environment

LIMIT_SECONDS = 300
"""Several times what Ray takes on two cores."""

SIMULATION = """
import sys
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
import ray

RayBackend({"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
"""Flower's own code that starts Ray for a run; it ends with its input."""

STRANGER = """
import sys
from ray._raylet import GcsClient

print("in:", len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None, timeout=20)), "keys")
"""


@dataclass(frozen=True)
class Simulation:
    """Ray as a run has it.

    Attributes:
        environment: what Flower's processes were given.
        address: of Ray's global control store.
        process: Ray's driver, the ancestor of all its processes.
    """

    environment: dict[str, str]
    address: str
    process: psutil.Process


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(variable)
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower")))
        environment = flower_environment()
    command = [sys.executable, "-c", SIMULATION]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        address = next(line.split()[1] for line in driver.stdout if line.startswith("address "))
        yield Simulation(environment, address, psutil.Process(driver.pid))
        driver.communicate(timeout=LIMIT_SECONDS)


def visit(address: str, environment: dict[str, str], **changes: str) -> subprocess.CompletedProcess[str]:
    """A process that asks Ray's control store for its keys."""
    return subprocess.run(
        [sys.executable, "-c", STRANGER, address],
        env={**environment, **changes},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_who_does_not_know_the_token_is_refused_and_who_does_gets_in(simulation: Simulation) -> None:
    token = simulation.environment["RAY_AUTH_TOKEN"]
    for changes in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": token[::-1]}):
        stranger = visit(simulation.address, simulation.environment, **changes)
        assert stranger.returncode != 0
        assert "in:" not in stranger.stdout
        assert "Unauthenticated" in stranger.stderr or "InvalidAuthToken" in stranger.stderr
    # The same program gets in with the token: what kept the others out is the token.
    assert "in:" in visit(simulation.address, simulation.environment).stdout


def test_ray_listens_on_this_machine_alone(simulation: Simulation) -> None:
    listening = {
        connection.laddr.ip
        for process in (simulation.process, *simulation.process.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    for address in listening:
        assert ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback, listening
