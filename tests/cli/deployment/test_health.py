from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedsynth.cli.deployment.certificates import make_authority, make_server_certificate
from fedsynth.cli.deployment.flower import free_ports
from fedsynth.cli.deployment.health import main
from fedsynth.cli.deployment.link_folder import LinkFolder, LinkSettings


class Health(BaseHTTPRequestHandler):
    """Answers as a SuperLink does, or as a front whose SuperLink is gone."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkFolder]:
    folder = LinkFolder(tmp_path_factory.mktemp("health"))
    make_authority(folder.authority, folder.authority_key)
    hosts = ["localhost", "127.0.0.1"]
    make_server_certificate(hosts, folder.authority, folder.authority_key, folder.certificate, folder.key)
    server = HTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    LinkSettings(hosts, server.server_port).write(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_link_that_answers_is_healthy_by_folder_and_by_address(
    link: LinkFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(link.path)]) == 0
    assert main([link.read().local_address, str(link.authority)]) == 0
    assert capsys.readouterr().out == ""


def test_one_that_does_not_is_named_with_the_reason(
    link: LinkFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Health, "status", 502)
    assert main([str(link.path)]) == 1
    assert "status 502" in capsys.readouterr().out
    (port,) = free_ports(1)
    assert main([f"127.0.0.1:{port}", str(link.authority)]) == 1
    assert "refused" in capsys.readouterr().out
    make_authority(tmp_path / "ca.crt", tmp_path / "ca.key")
    assert main([link.read().local_address, str(tmp_path / "ca.crt")]) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
    assert main(["nowhere", str(link.authority)]) == 1
    assert "superlink = 'nowhere'" in capsys.readouterr().out
