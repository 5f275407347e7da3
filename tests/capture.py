"""Everything that a silo and its SuperLink say to each other, and a search for an image in it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
from flwr.app import Message
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from fedsynth.messages import transport


@dataclass(frozen=True)
class Exchange:
    """One HTTP request with its answer; bodies without content encoding."""

    path: str
    headers: str
    request: bytes
    answer: bytes


@dataclass
class Capture:
    """What crossed, in order."""

    exchanges: list[Exchange] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """Every message that crossed as a whole, in both directions, in no order."""
        objects = {hashlib.sha256(content).hexdigest(): content for content in self._objects() if content}
        return [
            inflate_object_from_contents(key, dict(objects), keep_object_contents=True)
            for key, content in objects.items()
            if get_object_type_from_object_content(content) == "Message"
        ]

    def _objects(self) -> Iterator[bytes]:
        for exchange in self.exchanges:
            if exchange.path.endswith("/push-object"):
                yield PushObjectRequest.FromString(exchange.request).object_content
            if exchange.path.endswith("/pull-object"):
                yield PullObjectResponse.FromString(exchange.answer).object_content

    def traces(self, image: Path) -> set[str]:
        """Where a grey image is found: as its ``file``, as its ``pixels``, or in an ``array`` whatever its scale."""
        pixels = np.asarray(Image.open(image))
        said = [f"{each.path}{each.headers}".encode() + each.request + each.answer for each in self.exchanges]
        found = {"file"} if any(image.read_bytes() in each for each in said) else set()
        found |= {"pixels"} if any(pixels.tobytes() in each for each in said) else set()
        return found | ({"array"} if holds(self.messages(), pixels) else set())

    def answers(self) -> list[Message]:
        """What the silo said."""
        return [message for message in self.messages() if message.metadata.reply_to_message_id]


def arrays_of(message: Message) -> dict[tuple[str, str], np.ndarray]:
    """The arrays of a message, by the names of their record and their own."""
    records = {name: transport.array_record(message, name) for name in transport.array_names(message)}
    return {(name, key): array.numpy() for name, record in records.items() for key, array in record.items()}


def holds(messages: Iterable[Message], wanted: np.ndarray) -> bool:
    """Whether an array of a message has these numbers in a row, whatever their type, scale and offset there."""
    arrays = [array for message in messages for array in arrays_of(message).values()]
    return any(resemblance(array, wanted) > 0.95 for array in arrays)


def resemblance(values: np.ndarray, pixels: np.ndarray) -> float:
    """Largest magnitude of the correlation of an image with as many values in a row: 1 for any scale and offset."""
    wanted = pixels.reshape(-1).astype(np.float64)
    if values.size < wanted.size:
        return 0.0
    windows = sliding_window_view(values.reshape(-1).astype(np.float64), wanted.size)
    wanted = (wanted - wanted.mean()) / wanted.std()
    spreads = windows.std(axis=1) * wanted.size
    return float(np.abs(windows @ wanted / np.where(spreads > 0, spreads, np.inf)).max())


@contextmanager
def relay_to(port: int) -> Iterator[tuple[int, Capture]]:
    """Forward what comes to a new port of this machine to ``port``; yield the new one and what passes."""
    capture = Capture()

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = client.post(self.path, content=body, headers=dict(self.headers))
            capture.exchanges.append(Exchange(self.path, str(self.headers), body, answer.content))
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            return

    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ThreadingHTTPServer(("127.0.0.1", 0), Relay) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, capture
        finally:
            server.shutdown()
