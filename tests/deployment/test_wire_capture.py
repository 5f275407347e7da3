"""What crosses the wire in a run of cooperative inference, captured between a real silo and its SuperLink."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from capture import Capture, arrays_of, relay_to, resemblance
from deployed import LIMIT_SECONDS
from PIL import Image
from real_silos import real_settings, write_silos

from experiments.benchmarks.loopback import Loopback
from fedsynth.messages import DescribeRequest, EpsilonRequest, PrepareRequest, transport
from fedsynth.policy import POLICY_FILE, SiloPolicy, document

ROOT = Path(__file__).parents[2]
SILOS = {"north": (0, 1), "south": (0, 1)}
PROJECT = """
[project]
name = "leak"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedsynth"
[tool.flwr.app.components]
serverapp = "leak:server_app"
clientapp = "leak:client_app"
[tool.flwr.app.config]
"""
LEAK = """
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from PIL import Image
from fedsynth.messages import transport

client_app = ClientApp()
server_app = ServerApp()


@client_app.query("leak")
def leak(message, context):
    marker = Path(context.node_config["data-path"]) / "0" / "marker.png"
    pixels = np.asarray(Image.open(marker))
    hidden = np.concatenate([np.zeros(37), pixels.reshape(-1) / -127.5 + 1, np.ones(50)]).astype(np.float16)
    answer = {
        "silo": ConfigRecord({"file": marker.read_bytes(), "pixels": pixels.tobytes()}),
        **transport.pack("arrays", ArrayRecord({"weights": Array(hidden)})),
    }
    return Message(RecordDict(answer), reply_to=message)


@server_app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        pass
    replies = grid.send_and_receive([Message(RecordDict({}), node, "query.leak") for node in nodes[:2]])
    assert all(reply.has_content() for reply in replies)
"""


@dataclass(frozen=True)
class Captured:
    """What passed between silo "north" and the SuperLink."""

    cooperation: Capture
    leak: Capture
    marker: Path


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """A run of DfD, and for comparison one of an app that sends an image of the silo."""
    folder = tmp_path_factory.mktemp("wire")
    images = write_silos(folder / "images", SILOS)
    marker = images["north"] / "0" / "marker.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8), dtype=np.uint8)).save(marker)
    (folder / "app").mkdir()
    (folder / "app" / "pyproject.toml").write_text(PROJECT)
    (folder / "app" / "leak.py").write_text(LEAK)
    settings = real_settings(folder, strategy="dfd", num_clients=2, dfd_rounds=3, fast_replies=True)
    policy = folder / POLICY_FILE
    policy.write_text(document(SiloPolicy(least_training_images=9)), encoding="utf-8")
    link, captures = Loopback(folder / "link"), {}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(relay_to(link.port)) for name in images}
        # After the relays: the silos take their leave through them.
        stack.enter_context(link)
        for name, path in images.items():
            port, captures[name] = ports[name]
            config = f'data-path="{path}" silo-name="{name}" state-path="{folder / name}" policy-path="{policy}"'
            link.start_silo(name, config, warm=True, port=port)
        link.run("cooperation", ROOT, settings, timeout=LIMIT_SECONDS)
        cooperation = Capture(list(captures["north"].exchanges))
        link.run("leak-run", folder / "app", {}, timeout=LIMIT_SECONDS)
        leak = Capture(captures["north"].exchanges[len(cooperation.exchanges) :])
        yield Captured(cooperation, leak, marker)


def test_only_named_records_cross_and_no_weights(captured: Captured) -> None:
    seen: dict[str, set[tuple[str, str]]] = {}
    for message in captured.cooperation.messages():
        kind = message.metadata.message_type
        others = {
            (name, "") for name in message.content if name.partition("#")[0] not in transport.array_names(message)
        }
        seen.setdefault(kind, set()).update({*arrays_of(message), *others})
    answers = {("config", ""), ("metrics", ""), ("silo", "")}
    asked = {("arrays", "samples"), ("arrays", "labels"), ("arrays", "timesteps")}
    assert set(seen) == {DescribeRequest.kind, PrepareRequest.kind, EpsilonRequest.kind}
    assert seen[DescribeRequest.kind] <= answers
    assert seen[PrepareRequest.kind] <= answers
    assert seen[EpsilonRequest.kind] <= answers | asked | {("epsilon", "epsilon")}
    assert {("arrays", "samples"), ("epsilon", "epsilon")} <= seen[EpsilonRequest.kind]


def test_no_image_of_the_silo_crosses(captured: Captured) -> None:
    assert captured.cooperation.traces(captured.marker) == set()


def test_the_search_finds_an_image_that_does_cross(captured: Captured) -> None:
    assert captured.leak.traces(captured.marker) == {"file", "pixels", "array"}


def test_resemblance_of_an_image_and_its_negative_is_whole() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    noise = np.random.default_rng(2).normal(size=500)
    hidden = np.concatenate([noise, 3 - pixels.reshape(-1) / 255, noise])
    assert resemblance(hidden, pixels) == pytest.approx(1, abs=1e-6)
    assert resemblance(noise, pixels) < 0.6
    assert resemblance(np.zeros(10), pixels) == 0
