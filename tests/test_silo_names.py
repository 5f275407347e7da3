from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedsynth.cli.deployment.certificates import make_silo_key
from fedsynth.errors import UserError
from fedsynth.silo_names import VARIABLE, Holder, NameTakenError, SiloNames, key_fingerprint

OLD, NEW = Holder("SHA256:old", 1), Holder("SHA256:new", 2)


def test_a_name_is_its_first_user_s_until_it_is_replaced(tmp_path: Path) -> None:
    names = SiloNames(tmp_path / "names.json")
    assert names.read() == {}
    assert names.bind("north", OLD) is None
    assert names.bind("north", OLD) is None
    with pytest.raises(NameTakenError, match="the name 'north' belongs to the key SHA256:old, and this one"):
        names.bind("north", NEW)
    assert SiloNames(names.path).read() == {"north": OLD}
    assert names.bind("north", NEW, replace=True) == OLD
    assert names.bind("ärzte", OLD) is None
    assert names.read() == {"north": NEW, "ärzte": OLD}
    # The key's node is another after a new SuperLink: still its name.
    assert names.bind("north", Holder(NEW.key, 9)) is None
    assert names.read()["north"].node_id == 9


@pytest.mark.parametrize("content", ["", "[1]", '{"north": 3}', '{"north": {"key": "a"}}'])
def test_a_damaged_memory_is_refused_instead_of_forgotten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    for use in (lambda: SiloNames(path).read(), lambda: SiloNames(path).bind("north", OLD)):
        with pytest.raises(UserError, match=r"names\.json' cannot be read .*: restore it"):
            use()
    assert path.read_text() == content


def test_the_place_comes_from_the_link_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert SiloNames.of_this_link() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "names.json"))
    found = SiloNames.of_this_link()
    assert found is not None
    assert found.path == tmp_path / "names.json"


def test_fingerprint_is_that_of_ssh_keygen_in_both_formats(tmp_path: Path) -> None:
    make_silo_key(tmp_path / "silo.key", tmp_path / "silo.pub")
    public = (tmp_path / "silo.pub").read_bytes()
    pem = load_ssh_public_key(public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert key_fingerprint(public) == key_fingerprint(pem)
    if (keygen := shutil.which("ssh-keygen")) is not None:
        done = subprocess.run([keygen, "-l", "-f", tmp_path / "silo.pub"], capture_output=True, text=True, check=True)
        assert done.stdout.split()[1] == key_fingerprint(public)
    for other in (b"", b"ecdsa-", b"-----BEGIN PUBLIC KEY-----"):
        with pytest.raises(ValueError, match=r".+"):
            key_fingerprint(other)
