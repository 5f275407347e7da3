"""A silo that goes by the name of another: at the first question, and later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.app import ConfigRecord, Message
from flwr.proto.node_pb2 import NodeInfo
from hand_made import StubGrid, bare_reply

from fedsynth.cli.deployment.certificates import make_silo_key
from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.silo_names import VARIABLE, Holder, SiloNames, key_fingerprint
from fedsynth.spec import ImageSpec
from strategies.conversation.agreement import agree
from strategies.conversation.exchange import Exchange
from strategies.conversation.meeting import take_census

SPEC = ImageSpec(1, 8, ("cat",))


def key_of(folder: Path, name: str) -> bytes:
    """A new public key, as a SuperLink keeps it."""
    make_silo_key(folder / f"{name}.key", folder / f"{name}.pub")
    key = load_ssh_public_key((folder / f"{name}.pub").read_bytes())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Registered(StubGrid):
    """Silos that a SuperLink has registered, each of which calls itself as it likes."""

    def __init__(self, registered: dict[int, NodeInfo], claims: dict[int, str], later: dict[int, str]) -> None:
        super().__init__(registered, self._answer)
        self._infos, self._claims, self._later = registered, claims, {**claims, **later}

    def get_nodes(self) -> Iterable[NodeInfo]:
        return list(self._infos.values())

    def _answer(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if kind == "query.describe":
            answer = bare_reply(message, {"silo-name": self._claims[node]})
            answer.content["config"] = ConfigRecord({"image-channels": 1, "image-size": 8, "classes": ["cat"]})
            return answer
        return bare_reply(message, {"silo-name": self._later[node]}, num_examples=5, label_counts=[5])


def meet(
    registered: dict[int, tuple[str, bytes]],
    claims: dict[int, str],
    later: dict[int, str] | None = None,
    num_clients: int = 2,
) -> list[tuple[str, int]]:
    """Name and node of every silo that takes part."""
    infos = {node: NodeInfo(node_id=node, name=name, public_key=key) for node, (name, key) in registered.items()}
    exchange = Exchange(Registered(infos, claims, later or {}), 5.0)
    config = RunConfig.from_run_config({"dataset": "silos", "num-clients": num_clients})
    names = agree(exchange, config)[0]
    census = take_census(exchange, list(names), SPEC, 1000, names)
    return [(member.name, member.node_id) for member in census]


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiloNames:
    """What the link of this process remembers."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "silo-names.json"))
    return SiloNames(tmp_path / "silo-names.json")


def test_registered_name_counts_and_the_run_goes_on_without_who_claims_another_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {name: key_of(tmp_path, name) for name in ("north", "south", "thief")}
    registered = {1: ("north", keys["north"]), 2: ("south", keys["south"]), 3: ("west", keys["thief"])}
    claims = {1: "north", 2: "south", 3: "north"}
    # Two silos of one name used to end the run: the thief could stop it, or come first by taking a free name.
    assert meet(registered, claims) == [("north", 1), ("south", 2)]
    assert "north left out: calls itself 'north', and its key is registered as 'west'" in caplog.text
    with pytest.raises(RunError, match=r"2 usable answers, 3 needed: north: calls itself 'north'"):
        meet(registered, claims, num_clients=3)
    # Nor may a key that is registered without a name, or a simulated silo's number.
    unnamed = {**registered, 3: ("", keys["thief"])}
    assert meet(unnamed, claims) == [("north", 1), ("south", 2)]
    assert "calls itself 'north', which another silo's key is registered as" in caplog.text


def test_name_of_a_silo_that_is_away_stays_its_own(
    tmp_path: Path, memory: SiloNames, caplog: pytest.LogCaptureFixture
) -> None:
    north, south, thief = (key_of(tmp_path, name) for name in ("north", "south", "thief"))
    assert meet({1: ("", north), 2: ("", south)}, {1: "north", 2: "south"}) == [("north", 1), ("south", 2)]
    assert memory.read() == {
        "north": Holder(key_fingerprint(north), 1),
        "south": Holder(key_fingerprint(south), 2),
    }
    # North is off. Another key comes by its name, unnamed at the SuperLink or registered under it behind our back.
    for name in ("", "north"):
        away = {2: ("", south), 3: (name, thief)}
        with pytest.raises(RunError, match="1 usable answers, 2 needed: north: the name 'north' belongs to"):
            meet(away, {2: "south", 3: "north"})
        assert meet(away, {2: "south", 3: "north"}, num_clients=1) == [("south", 2)]
    assert memory.read()["north"].key == key_fingerprint(north)
    # The same key on another day, as another node, is north.
    assert meet({7: ("", north), 2: ("", south)}, {7: "north", 2: "south"}) == [("north", 7), ("south", 2)]


def test_who_changes_its_name_after_the_first_question_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registered = {node: (name, key_of(tmp_path, name)) for node, name in ((1, "north"), (2, "south"), (3, "west"))}
    claims = {node: name for node, (name, _) in registered.items()}
    met = meet(registered, claims, {3: "north"}, num_clients=3)
    assert met == [("north", 1), ("south", 2)]
    assert "west left out of the run: calls itself 'north' now" in caplog.text
