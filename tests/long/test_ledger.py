"""Heads of replicated runs on a real Ethereum node, the development node anvil, which dies and comes back."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from replicated_rounds import Replicated
from tiny_runs import run_tiny, tiny_settings

from fedsynth.cli import main
from fedsynth.config import Scalar
from fedsynth.errors import UserError
from fedsynth.heads import Ledger, LedgerError, contract
from fedsynth.output import RunFolder
from strategies.conversation.noted_heads import NotedHeads, check_ledger

ANVIL = shutil.which("anvil")
KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
"""Of anvil's second account, which its manual prints."""
needs_anvil = pytest.mark.skipif(
    ANVIL is None or find_spec("web3") is None,
    reason="no anvil on PATH (npm: @foundry-rs/anvil-linux-amd64), or no web3",
)
RUN: dict[str, Scalar] = {
    **{"strategy": "fedavg", "aggregators": "silos", "num_clients": 3, "num_samples": 6, "num_rounds": 3},
    **{"train_steps": 3, "samples_per_client": 20, "block_out_channels": "4,4", "sampling_steps": 2},
}


@dataclass
class Node:
    """A chain of its own on this machine; its blocks outlive the process.

    Attributes:
        folder: holds the chain.
        words: further options of anvil.
    """

    folder: Path
    words: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        assert ANVIL is not None
        command = [ANVIL, "--host", "127.0.0.1", "--port", str(self.port), "--state", str(self.folder / "chain.json")]
        self.process = subprocess.Popen([*command, "--silent", *self.words], cwd=self.folder)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                Ledger(self.url).deploy(timeout=10)
                return
            except LedgerError:
                time.sleep(0.1)
        raise AssertionError("anvil does not answer")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None


@contextmanager
def running(folder: Path, *words: str) -> Iterator[Node]:
    folder.mkdir(parents=True, exist_ok=True)
    node = Node(folder, words)
    node.start()
    try:
        yield node
    finally:
        node.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(tmp_path / "node") as started:
        yield started


def audit(run: RunFolder, url: str, address: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    words = ["audit", str(run.path), "--keys", str(run.audit / "keys.json")]
    status = main([*words, "--ledger-url", url, "--ledger-contract", address])
    return status, capsys.readouterr().out


def deployed(node: Node, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["link", "ledger", "--ledger-url", node.url, *words]) == 0
    return capsys.readouterr().out.split()[1]


@needs_anvil
def test_a_run_writes_every_head_and_its_audit_compares_them(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = deployed(node, capsys)
    settings = tiny_settings(tmp_path, **RUN, ledger_url=node.url, ledger_contract=address)
    run = run_tiny(settings, report=False)
    assert all(row["ledger-seconds"] > 0 for row in run.read_metrics())
    assert f"ledger: 3 of 3 heads in contract {address}" in (run.synthetic / "README.md").read_text()
    status, out = audit(run, node.url, address, capsys)
    assert status == 0, out
    assert f"ledger 3 of 3 heads agree in contract {address}" in out
    # The auditor is told of another contract, or of none; of a node that is down.
    for url, other, said in (
        (node.url, deployed(node, capsys), "the ledger has no head of round 3"),
        (node.url, f"0x{'11' * 20}", "no contract lies there"),
        ("http://127.0.0.1:9", address, "it cannot be reached (ConnectionError)"),
    ):
        status, out = audit(run, url, other, capsys)
        assert status == 1
        assert said in out, out
    # Whoever holds the folder cuts off the last round, list of files and all: the ledger knows better.
    log = run.audit / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    last = max(k for k, line in enumerate(lines) if '"event":"certificate"' in line)
    log.write_text("".join(lines[:last]))
    status, out = audit(run, node.url, address, capsys)
    assert "the ledger has heads up to round 3: later rounds were cut off the log" in out


@needs_anvil
def test_a_ledger_that_is_down_costs_a_line_and_gets_what_it_lacks_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path / "node") as node:
        address = deployed(node, capsys)
        run = Replicated(tmp_path / "run", {"ledger-url": node.url, "ledger-contract": address})
        token = run.replication.parties.run
        run.play()
        node.stop()
        assert run.play()["signers"] == 4
        assert "it cannot be reached (ConnectionError); what is missing is sent later" in caplog.text
        node.start()
        run.play()
        assert run.replication.certified()["ledger"] == f"3 of 3 heads in contract {address}"
        ledger = Ledger(node.url, address)
        chain = run.replication.chain
        assert {number: ledger.head(token, number) for number in (1, 2, 3)} == chain.seen
        # Down at the end: the run ends as it would, and a resumed one writes what is missing.
        node.stop()
        run.play()
        saved = run.run.strategy.state_dict()
        assert run.replication.certified()["ledger"] == f"3 of 4 heads in contract {address}"
        assert "lacks the heads of rounds 4: resume the run when it is back" in caplog.text
        node.start()
        again = Replicated(tmp_path / "run", {"ledger-url": node.url, "ledger-contract": address})
        again.run.strategy.load_state_dict(saved)
        assert again.replication.certified()["ledger"] == f"4 of 4 heads in contract {address}"
        assert ledger.head(token, 4) == chain.head
        assert ledger.last(token) == 4


@needs_anvil
def test_nobody_changes_a_head_and_nobody_else_writes_one(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "account.key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    address = deployed(node, capsys, "--ledger-key-file", str(key))
    owner, other = Ledger(node.url, address, str(key)), Ledger(node.url, address)
    owner.check()
    with pytest.raises(UserError, match="only 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 may write there"):
        other.check()
    with pytest.raises(LedgerError, match="not the writer"):
        other.send("run-1", 1, "ab" * 32)
    owner.send("run-1", 2, "ab" * 32)
    with pytest.raises(LedgerError, match="this round has a head"):
        owner.send("run-1", 2, "cd" * 32)
    assert [owner.head("run-1", number) for number in (1, 2)] == ["", "ab" * 32]
    assert owner.head("run-2", 2) == ""
    noted = NotedHeads(owner)
    noted.begin([(1, "ef" * 32), (2, "cd" * 32)])
    assert noted.settle("run-1") == f"1 of 1 heads in contract {address}"
    assert f"holds another head of round 2: {'ab' * 32}" in caplog.text
    # Before any silo is asked.
    config = Replicated(tmp_path / "run", {"ledger-url": node.url, "ledger-contract": address}).run.task.config
    with pytest.raises(UserError, match="only 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 may write there"):
        check_ledger(config.replicas)


@needs_anvil
def test_blocks_that_come_late_hold_up_no_round_and_a_run_waits_for_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path / "node", "--block-time", "2") as node:
        address = deployed(node, capsys)
        noted = NotedHeads(Ledger(node.url, address))
        for number in (1, 2, 3):
            noted.add("run-1", number, f"{number:064x}")
        assert noted.confirmed != {1, 2, 3}
        assert noted.settle("run-1") == f"3 of 3 heads in contract {address}"


def test_the_bytecode_is_that_of_the_source() -> None:
    script = "console.log(require('solc').compile(require('fs').readFileSync(0, 'utf8')))"
    source = (Path(contract.__file__).parent / "Heads.sol").read_text()
    outputs = {"*": {"*": ["evm.bytecode.object", "evm.deployedBytecode.object"]}}
    asked: dict[str, Any] = {
        "language": "Solidity",
        "sources": {"Heads.sol": {"content": source}},
        "settings": {**contract.SETTINGS, "outputSelection": outputs},
    }
    try:
        done = subprocess.run(
            ["node", "-e", script], input=json.dumps(asked), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no solc {contract.COMPILER} where node finds it (npm: solc, NODE_PATH)")
    made = json.loads(done.stdout)["contracts"]["Heads.sol"]["Heads"]["evm"]
    assert made["bytecode"]["object"] == contract.BYTECODE
    assert made["deployedBytecode"]["object"] == contract.CODE
