"""Dockerfile and compose.yaml: what they name exists, and a silo opens nothing. No engine builds them here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_commands import parsed
from pages import ROOT, blocks_of

from fedsynth.cli.deployment.front import front_command
from fedsynth.cli.deployment.link_folder import LinkFolder

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    (line.split()[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    if line.strip()
]
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def mounts(service: str) -> dict[str, bool]:
    """Folders of a container that come from outside, and whether it may write there."""
    parts = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    return {part[1]: part[2:] != ["ro"] for part in parts}


def test_the_dockerfile_has_two_stages_of_instructions() -> None:
    assert {name for name, _ in INSTRUCTIONS} == KNOWN
    assert [name for name, _ in INSTRUCTIONS if name == "FROM"] == ["FROM"] * 2
    (python,) = (rest.partition("=")[2] for rest in of("ARG") if rest.startswith("PYTHON="))
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_what_is_copied_exists_and_is_sent_and_is_all_that_a_wheel_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [word for rest in of("COPY") if not rest.startswith("--from=build /opt/") for word in rest.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists() or f"!{name}" not in ignored] == []
    assert {"*", *(f"!{name}" for name in copied), "**/__pycache__"} == {word for word in ignored if word[0] in "*!"}
    wanted = {"pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", PROJECT["readme"]}
    assert {*wanted, "fedsynth", "clients", "strategies", "constraints.txt"} == set(copied)


def test_the_image_is_installed_with_options_that_uv_has() -> None:
    (run,) = (rest for rest in of("RUN") if "uv pip install" in rest)
    done = subprocess.run(
        [Path(sys.executable).with_name("uv"), "pip", "install", "--help"], capture_output=True, text=True, check=True
    )
    said = " ".join(done.stdout.split())
    options = re.findall(r"(?<=\s)--[a-z-]+|(?<=:\+)--[a-z-]+", run)
    assert len(options) == 5
    assert [option for option in options if not re.search(rf"{option}\b", said)] == []
    (backend,) = (rest.partition("=")[2] for rest in of("ARG") if rest.startswith("TORCH_BACKEND="))
    found = re.search(r"UV_TORCH_BACKEND=\] \[possible values: ([^\]]*)\]", said)
    assert found
    assert backend == "cpu"
    assert {"cpu", "cu130"} <= set(re.split(r",\s+", found[1]))
    extras = re.findall(r"'\.\[(\w+)\]'", run)
    assert extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_image_starts_the_command_as_somebody_who_may_not_write_the_root() -> None:
    assert of("ENTRYPOINT") == ['["fedsynth"]']
    assert "fedsynth" in PROJECT["scripts"]
    assert of("USER")[-1].split(":")[0] not in ("root", "0")
    assert of("VOLUME") == ['["/data", "/tmp"]']
    assert of("WORKDIR")[-1] == "/data"
    assert INSTRUCTIONS[-1] == ("CMD", '["--help"]')


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_write_its_mounts_only(service: str) -> None:
    said = SERVICES[service]
    assert (said["image"], said["read_only"], said["tmpfs"], said["cap_drop"]) == ("fedsynth", True, ["/tmp"], ["ALL"])
    assert said["user"] == "1000:1000"
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert all(target.startswith("/data/") for target, writable in mounts(service).items() if writable)


def test_a_silo_publishes_no_port_and_reads_images_and_certificate_only() -> None:
    silo = SERVICES["silo"]
    assert not {"ports", "expose", "network_mode", "privileged", "devices"} & set(silo)
    words = parsed(["fedsynth", *silo["command"]])
    assert {str(words.root_certificates): False, str(words.data_path): False, str(words.folder): True} == mounts("silo")


def test_only_the_front_of_a_link_is_published() -> None:
    link, front = SERVICES["link"], SERVICES["front"]
    words = parsed(["fedsynth", *link["command"]])
    assert mounts("link") == {str(words.folder): True, "/data/runs": True}
    assert [*front["entrypoint"], *front["command"]] == front_command(LinkFolder(words.folder))
    assert front["network_mode"] == "service:link"
    assert mounts("front") == {str(words.folder): True}
    # The SuperLink keeps to 127.0.0.1, which no published port reaches: no --bind.
    assert link["ports"] == ["9092:9092"]
    assert words.bind == "127.0.0.1"


@pytest.mark.parametrize("service", ["link", "silo"])
def test_health_checks_ask_what_the_service_knows(service: str) -> None:
    kind, python, flag, module, *words = SERVICES[service]["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "python", "-m")
    assert find_spec(module) is not None
    assert [word for word in words if word and word not in mounts(service)] == []


def ours(words: list[str]) -> list[str]:
    """The command of ours that a docker command runs; empty: none."""
    match words:
        case ["docker", "compose", "exec", _, *rest]:
            return rest
        case ["docker", "compose", "run", "--rm", "--no-deps", service, *rest]:
            assert service in SERVICES
            return ["fedsynth", *rest]
        case ["docker", "run", *rest]:
            return rest[rest.index("fedsynth") :]
    return []


def test_the_commands_of_the_page_take_what_they_are_given() -> None:
    lines = [line for block in blocks_of(ROOT / "docs" / "containers.md") for line in block.text.splitlines()]
    found = [command for line in lines if (command := ours(shlex.split(line, comments=True)))]
    for command in found:
        parsed(command)
    assert len(found) == 9
    profiles = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert {word for line in lines for word in re.findall(r"--profile (\w+)", line)} == profiles == {"link", "silo"}
