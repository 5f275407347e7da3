from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.superlink.routers.fleet.router import router

from fedsynth.cli import main
from fedsynth.cli.deployment.front import SILO_PATHS
from fedsynth.cli.deployment.link_folder import LinkFolder, LinkSettings, connection_to

Refused = Callable[..., str]


def listens(text: str) -> list[str]:
    return re.findall(r"^ +listen (.*) ssl;$", text, re.MULTILINE)


def test_paths_are_those_of_flower_s_fleet_interface_but_registration() -> None:
    paths = {route.path.removeprefix("/v1/fleet/") for route in router.routes if hasattr(route, "path")}
    assert {"register-node", "unregister-node"} <= paths
    assert set(SILO_PATHS) == paths - {"register-node", "unregister-node"}


def test_front_is_written_with_the_link_and_kept_by_its_renewal(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["link", "init", "--host", "link.example.org", "--port", "19000", "--front", "nginx"]) == 0
    said = capsys.readouterr().out
    link = LinkFolder(project / "link")
    assert f"send every silo {link.authority} (over a channel you trust) and the address link.example.org:19000" in said
    assert f"and its front:   nginx -c {link.front} -e {link.path}/nginx/error.log" in said
    assert "--bind" not in said
    text = link.front.read_text()
    assert listens(text) == ["19000"]
    assert "server 127.0.0.1:19001;" in text
    # The operator's commands go past the front, which would refuse them.
    assert connection_to("link", None).address == "127.0.0.1:19001"
    assert main(["link", "init", "--port", "19005"]) == 0
    assert link.read() == LinkSettings(["link.example.org", "localhost", "127.0.0.1"], 19005, "nginx", 19001)
    assert listens(link.front.read_text()) == ["19005"]
    assert main(["link", "init", "--host", "2001:db8::5", "--superlink-port", "19007"]) == 0
    assert listens(link.front.read_text()) == ["19005", "[::]:19005"]
    assert "server 127.0.0.1:19007;" in link.front.read_text()
    assert main(["link", "init", "--front", "none"]) == 0
    assert link.read() == LinkSettings(["2001:db8::5", "localhost", "127.0.0.1"], 19005)
    assert connection_to("link", None).address == "localhost:19005"


def test_a_link_for_this_machine_alone_has_a_front_for_it_alone(project: Path) -> None:
    assert main(["link", "init", "--port", "65535", "--front", "nginx"]) == 0
    link = LinkFolder(project / "link")
    assert listens(link.front.read_text()) == ["127.0.0.1:65535"]
    assert link.read().superlink_port == 65534


def test_settings_of_a_link_without_a_front_are_read_as_before(project: Path) -> None:
    link = LinkFolder(project)
    link.settings.write_text(json.dumps({"hosts": ["localhost"], "port": 9092}))
    assert link.read() == LinkSettings(["localhost"], 9092)
    assert link.read().local_address == "localhost:9092"


def test_start_keeps_the_superlink_on_this_machine_and_says_how_to_run_nginx(
    project: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert main(["link", "init", "--host", "link.example.org", "--port", "19000", "--front", "nginx"]) == 0
    capsys.readouterr()
    assert main(["link", "start", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "flower-superlink --host 127.0.0.1 --port 19001" in said
    assert f"silos connect to port 19000, to nginx, beside this:\nnginx -c {project}/link/nginx.conf" in said
    said = refused("link", "start", "--bind", "0.0.0.0", "--dry-run")
    assert "bind = '0.0.0.0': this link has a front, and whoever reaches the SuperLink past it can register" in said
    assert "'fedsynth link init --front none' removes the front" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--superlink-port 9000", "--superlink-port is for --front nginx"),
        ("--front nginx --superlink-port 9092", "superlink-port = 9092: is nginx's, the silos'; give another"),
        ("--front nginx --superlink-port 70000", "superlink-port = 70000: must be 1 to 65535"),
        ("--front nginx --folder a$b", "nginx cannot read paths with quotes, backslashes or $"),
    ],
)
def test_fronts_that_cannot_be_are_refused(project: Path, refused: Refused, words: str, said: str) -> None:
    assert said in refused("link", "init", *words.split())
