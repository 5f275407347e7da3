from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import time

import pytest

from fedsynth.cli.deployment.certificates import make_authority, make_server_certificate
from fedsynth.cli.deployment.clock import check_clock, seconds_ahead
from fedsynth.cli.deployment.flower import free_ports
from fedsynth.errors import UserError


class OtherClock(BaseHTTPRequestHandler):
    """Answers as a SuperLink that knows no such page, with a clock of its own."""

    ahead = 0.0

    def do_HEAD(self) -> None:
        self.send_error(404)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time() + self.ahead, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clock")
    make_authority(folder / "ca.crt", folder / "ca.key")
    made = folder / "server.crt", folder / "server.key"
    make_server_certificate(["localhost", "127.0.0.1"], folder / "ca.crt", folder / "ca.key", *made)
    return folder / "ca.crt"


@pytest.fixture(scope="module")
def address(authority: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), OtherClock)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.with_name("server.crt"), authority.with_name("server.key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0.0, ""), (290.0, ""), (-62.0, r"6[123] s ahead of the clock of localhost"), (400.0, "(399|400|401) s behind")],
)
def test_clock_that_flower_would_refuse_is_refused(
    authority: Path, address: str, ahead: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherClock, "ahead", ahead)
    assert seconds_ahead(address, authority) == pytest.approx(-ahead, abs=1)
    if not said:
        check_clock(address, authority)
        return
    with pytest.raises(UserError, match=f"this machine's clock is {said}"):
        check_clock(address, authority)


def test_without_an_answer_nothing_is_known(authority: Path, address: str, tmp_path: Path) -> None:
    assert seconds_ahead(f"localhost:{free_ports(1)[0]}", authority) is None
    make_authority(tmp_path / "other.crt", tmp_path / "other.key")
    assert seconds_ahead(address, tmp_path / "other.crt") is None, "Flower says what is wrong with the certificate"
