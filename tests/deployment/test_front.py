"""A link behind nginx: what a stranger with the address can do, and that registered silos notice nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import LIMIT_SECONDS, Deployment, classes_of
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from real_silos import write_silos

from fedsynth.cli.deployment.front import SILO_PATHS, front_command
from fedsynth.cli.deployment.link_folder import Connection, LinkFolder
from fedsynth.cli.deployment.processes import environment_of
from fedsynth.output import RunFolder
from fedsynth.silo_names import key_fingerprint

# Debian keeps it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx")

STRANGE_APP = """
[project]
name = "strange"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "code:app"
clientapp = "code:app"
"""
PUBLISHED = {f"/v1/fleet/{path}" for path in SILO_PATHS}


@contextlib.contextmanager
def front_of(link: Deployment) -> Iterator[None]:
    """The link's nginx, as an ordinary process; its files lie in the link's folder."""
    assert NGINX is not None
    folder = LinkFolder(link.folder / "link")
    with subprocess.Popen([NGINX, *front_command(folder)[1:]]) as nginx:
        try:
            link.wait("link", lambda: listens(link.port))
            yield
        finally:
            nginx.terminate()
            nginx.wait(30)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A link behind nginx with two silos, and a third that is registered as west and calls itself north."""
    link = Deployment(tmp_path_factory.mktemp("front"), front=True)
    images = write_silos(link.folder / "images", {"north": (0, 1), "south": (1, 2), "thief": (0, 1)})
    try:
        link.start_link()
        with front_of(link):
            link.register("north", "south")
            link.command("silo", "init", "--folder", "silo-thief")
            link.command("link", "register", "silo-thief/silo.pub", "--name", "west")
            link.start_silo_of("north")
            link.start_silo_of("south")
            link.start_silo("thief", images["thief"], "--silo-name", "north", "--warm")
            link.wait("link", lambda: link.log("link").count("Activated node_id") == 3)
            yield link
            link.close()
    finally:
        link.close()
    assert link.left() == []


@pytest.fixture(scope="module")
def run(link: Deployment) -> RunFolder:
    """A run through nginx; the link has forgotten one silo's name before."""
    names = link.folder / "link" / "silo-names.json"
    remembered = json.loads(names.read_text())
    assert sorted(remembered) == ["north", "south", "west"]
    names.write_text(json.dumps({name: row for name, row in remembered.items() if name != "south"}))
    run = link.run("through-nginx", num_clients=2)
    assert json.loads(names.read_text()) == remembered
    return run


def status_of(port: int, path: str, folder: Path, method: str = "POST", body: bytes = b"") -> int:
    """The HTTP status of a request that is written as it stands."""
    context = ssl.create_default_context(cafile=folder / "link" / "ca.crt")
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Content-Type", PROTOBUF_MEDIA_TYPE)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status


def test_registered_silos_work_through_the_front(link: Deployment, run: RunFolder) -> None:
    assert list(classes_of(run)) == ["0", "1", "2"]
    assert [sorted(row["attendance"]) for row in run.read_metrics()] == [["north", "south"]] * 3
    asked = {line.split()[3] for line in (link.folder / "link" / "nginx" / "access.log").read_text().splitlines()}
    assert {path.rstrip('"') for path in asked} <= PUBLISHED | {"/"}
    assert {"/v1/fleet/pull-messages", "/v1/fleet/push-object"} <= {path.rstrip('"') for path in asked}


def test_silo_under_another_s_name_is_left_out_by_the_name_of_its_key(run: RunFolder) -> None:
    said = run.log.read_text()
    assert "north left out: calls itself 'north', and its key is registered as 'west'" in said


def test_stranger_reaches_nothing_but_what_silos_need(link: Deployment) -> None:
    paths = {path for _, path in PROTOBUF_REQUEST_TYPES}
    assert len(paths) > 40
    assert paths >= PUBLISHED
    for path in [*sorted(paths - PUBLISHED), "/", "/docs", "/openapi.json", "/v1/fleet/", "/v1/fleet/pull-messages/x"]:
        assert status_of(link.port, path, link.folder) == 404, path
    # Without a key's signature, the paths that are open refuse, too.
    for path in sorted(PUBLISHED):
        assert status_of(link.port, path, link.folder) == 401, path
    # The operator, on the same machine, reaches the others past the front.
    assert status_of(link.superlink_port, "/v1/control/list-nodes", link.folder) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/pull-messages/..%2f..%2fcontrol/list-nodes",
        "//v1//control//list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/V1/control/list-nodes",
        "/v1/fleet/pull-messages%0d%0a/v1/control/list-nodes",
        "https://localhost/v1/control/list-nodes",
    ],
)
def test_no_way_of_writing_a_path_gets_past_the_front(link: Deployment, path: str) -> None:
    assert status_of(link.port, path, link.folder) in (400, 404)


def test_other_methods_and_bodies_without_end_are_refused(link: Deployment) -> None:
    assert status_of(link.port, "/v1/fleet/pull-messages", link.folder, "PUT") == 403
    assert status_of(link.port, "/health", link.folder, "GET") == 200
    context = ssl.create_default_context(cafile=link.folder / "link" / "ca.crt")
    with contextlib.closing(http.client.HTTPSConnection("localhost", link.port, context=context)) as connection:
        connection.putrequest("POST", "/v1/fleet/push-object")
        connection.putheader("Content-Length", str(2**30))
        connection.endheaders()
        assert connection.getresponse().status == 413


@pytest.fixture(scope="module")
def stranger(link: Deployment) -> Path:
    """A folder with a stranger's key, and an app that it would like to run."""
    folder = link.folder / "stranger"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(STRANGE_APP)
    (folder / "app" / "code.py").write_text("app = None\n")
    link.command("silo", "init", "--folder", str(folder / "silo"))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "supernode register silo/silo.pub link --name north",
        "supernode list link",
        "run app link",
        "list link",
        "stop 1 link",
    ],
)
def test_flower_s_own_commands_are_refused(link: Deployment, stranger: Path, words: str) -> None:
    home = stranger / "home"
    Connection(f"localhost:{link.port}", link.folder / "link" / "ca.crt", home).write()
    done = subprocess.run(
        ["flwr", *words.split()],
        env={**environment_of(home), "FLWR_TELEMETRY_ENABLED": "0"},
        cwd=stranger,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert "404" in done.stdout + done.stderr


def test_operator_gives_a_name_to_a_new_key_and_the_old_one_is_out(link: Deployment) -> None:
    names = LinkFolder(link.folder / "link").silo_names
    old = names.read()["south"]
    link.command("silo", "init", "--folder", "silo-again")
    link.command("link", "register", "silo-again/silo.pub", "--name", "south", "--replace")
    new = names.read()["south"]
    assert new.key == key_fingerprint((link.folder / "silo-again" / "silo.pub").read_bytes())
    assert new.node_id not in (0, old.node_id)
    # The SuperLink refuses the old key from now on, and its SuperNode ends.
    link.ended("south")
    assert "401" in link.log("link")
