"""Ledgers, as far as no node is needed; ``tests/long/test_ledger.py`` has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import UserError
from fedsynth.heads import Ledger, read_account_key
from fedsynth.heads.contract import BYTECODE, CODE, WRITER_AT, is_deployed

NODE: dict[str, Scalar] = {"ledger-url": "http://127.0.0.1:8545", "ledger-contract": f"0x{'a1' * 20}"}


def test_a_ledger_that_cannot_be_one_is_refused_before_anybody_is_asked() -> None:
    for changes, said in (
        ({"ledger-url": "file:///etc/passwd"}, "ledger-url = 'file:///etc/passwd': must be http:// or https://"),
        ({"ledger-url": "ws://127.0.0.1:8545"}, "ledger-url = 'ws://127.0.0.1:8545': must be http:// or https://"),
        ({"ledger-url": "http://me:secret@host:8545"}, "without a password"),
        ({"ledger-contract": "0xa1"}, "ledger-contract = '0xa1': must be an address"),
        ({"ledger-contract": ""}, "set both, or none; 'fedsynth link ledger' deploys a contract"),
        ({"ledger-url": ""}, "set both, or none"),
        ({"aggregators": "server"}, "ledger-url = 'http://127.0.0.1:8545': acts with aggregators = 'silos' or 'nodes'"),
    ):
        given: dict[str, Scalar] = {"strategy": "fedavg", "aggregators": "silos", **NODE, **changes}
        with pytest.raises(UserError) as error:
            RunConfig.from_run_config(given)
        assert said in str(error.value)
    known = {**NODE, "ledger-url": "https://[::1]:8545/v3/a_key", "ledger-key-file": "account.key"}
    config = RunConfig.from_run_config({"strategy": "fedavg", "aggregators": "silos", **known})
    assert config.replicas.ledger_url == "https://[::1]:8545/v3/a_key"


def test_without_web3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsynth.heads.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'web3' is not installed: pip install 'fedsynth\[ledger\]'"):
        Ledger("http://127.0.0.1:8545")


def test_an_account_key_is_32_bytes_that_nobody_else_reads(tmp_path: Path) -> None:
    path = tmp_path / "account.key"
    with pytest.raises(UserError, match="No such file"):
        read_account_key(path)
    for text in ("", "0x", "ab" * 31, "zz" * 32, f"{'ab' * 32} {'cd' * 32}"):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(UserError, match="must hold a private key, 64 hexadecimal digits, and nothing else"):
            read_account_key(path)
    path.write_text(f"0x{'ab' * 32}\n")
    assert read_account_key(path) == b"\xab" * 32
    path.chmod(0o644)
    with pytest.raises(UserError, match="can be read by others"):
        read_account_key(path)


def test_only_the_contract_itself_counts_as_deployed_whoever_its_writer_is() -> None:
    code = CODE
    for start in WRITER_AT:
        code = f"{code[:start]}{'a1' * 20:0>64}{code[start + 64 :]}"
    assert is_deployed(code)
    assert not is_deployed("")
    assert not is_deployed(BYTECODE)
    for digit in (0, WRITER_AT[0] - 1, len(code) - 1):
        other = "0" if code[digit] != "0" else "1"
        assert not is_deployed(f"{code[:digit]}{other}{code[digit + 1 :]}")
