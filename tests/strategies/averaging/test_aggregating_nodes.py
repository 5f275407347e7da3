"""Nodes that hold no images and aggregate: simulated ones beside simulated silos, real ones with keys of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message
from real_silos import keys_for_sums, real_settings, run_real, write_silos
from replicated_rounds import AGGREGATE, TRAIN, Replicated, equal, lost
from tiny_runs import without_pictures

from fedsynth.cli import main
from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.output import RunFolder

NODES: dict[str, Scalar] = {"strategy": "fedavg", "aggregators": "nodes", "num-aggregators": 4}
DFD: dict[str, Scalar] = {
    **{"strategy": "dfd", "weights": "constant", "screening": False, "copy-check": False, "dfd-rounds": 4},
    **{"num-samples": 4, "train-steps": 1, "sampler": "sde-dpmsolver++"},
}


@pytest.fixture(autouse=True)
def _no_long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.conversation.replicas.LEAST_GRACE", 0.05)


@pytest.mark.parametrize("method", [{"strategy": "fedavgm"}, DFD], ids=["averaging", "dfd"])
def test_four_nodes_make_what_a_server_makes_though_one_is_silent(
    method: dict[str, Scalar], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Replicated(tmp_path, {**NODES, **method})
    plain = Replicated(tmp_path / "plain", {**NODES, **method, "aggregators": "server"})
    asked: set[tuple[str, int]] = set()

    def note(kind: str, node: int, question: Message) -> None:
        asked.add((kind, node))

    run.on_question = note
    plain.play()
    assert run.play()["signers"] == 4
    # Silos are partitions 0 to 3; none of them aggregates, and no other node is asked for anything else.
    assert {node for kind, node in asked if kind == AGGREGATE} == {4, 5, 6, 7}
    assert {node for kind, node in asked if kind != AGGREGATE} <= {0, 1, 2, 3}
    run.on_question = lost(AGGREGATE, 7)
    plain.play()
    assert run.play()["signers"] == 3
    assert "aggregator-3 left out: gone" in caplog.text
    assert equal(run.weights, plain.weights)


def test_a_silo_does_not_aggregate_and_an_aggregator_does_nothing_else(tmp_path: Path) -> None:
    run = Replicated(tmp_path, NODES)
    kept: dict[str, Message] = {}

    def keep(kind: str, node: int, question: Message) -> None:
        kept.setdefault(kind, question)

    run.on_question = keep
    run.play()
    run.on_question = lambda kind, node, question: None
    for kind, node, said in (
        (AGGREGATE, 1, "this silo does not aggregate in this run: nodes of their own do"),
        (TRAIN, 5, "aggregator-1: UserError: 'train': this node aggregates, and holds no images"),
    ):
        question = kept[kind]
        question.metadata.__dict__["_dst_node_id"] = 100 + node
        (answer,) = run.grid.send_and_receive([question])
        assert answer.has_error()
        assert said in answer.error.reason


SILOS = {"east": (0, 1), "north": (0, 1)}
REAL: dict[str, Scalar] = {
    **{"strategy": "fedavg", "aggregators": "nodes", "num_aggregators": 3, "num_clients": 2, "num_rounds": 2},
    **{"train_steps": 2, "num_samples": 2, "sampling_steps": 2, "block_out_channels": "4,4"},
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A run of two silos and three aggregators, and the key file of them all."""
    folder = tmp_path_factory.mktemp("nodes")
    keys = keys_for_sums(folder / "keys", sorted(SILOS), ("a-1", "a-2", "a-3"))
    nodes = {**write_silos(folder / "images", SILOS), **dict.fromkeys(("a-1", "a-2", "a-3"))}
    path = Path(keys["a-1"]["known-keys-path"])
    with without_pictures():
        run = run_real(real_settings(folder, key_file=str(path), **REAL), nodes, **keys)
        settings = real_settings(folder, key_file=str(path), **{**REAL, "num_aggregators": 2}, run_name="fewer")
        with pytest.raises(RunError, match=r"num-aggregators = 2, and 3 nodes aggregate \(a-1, a-2, a-3\)"):
            run_real(settings, nodes, **keys)
        # A file of the silos alone.
        known = json.loads(path.read_text())
        (folder / "silos.json").write_text(json.dumps({"format": known["format"], "silos": known["silos"]}))
        settings = real_settings(folder, key_file=str(folder / "silos.json"), **REAL, run_name="other")
        with pytest.raises(UserError, match=r"not the keys of this run's parties \(a-1, a-2, a-3\)"):
            run_real(settings, nodes, **keys)
    return run, path


def audit(run: RunFolder, keys: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["audit", str(run.path), "--keys", str(keys), "--recompute"])
    return status, capsys.readouterr().out


def test_a_run_of_real_nodes_is_audited_with_the_key_file_of_all(
    real: tuple[RunFolder, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, keys = real
    assert (run.audit / "keys.json").read_bytes() == keys.read_bytes()
    status, out = audit(run, keys, capsys)
    assert status == 0, out
    assert "quorum 2 of 3 aggregators (byzantine)" in out
    assert "keys   2 silos and 3 aggregators, SHA-256" in out
    assert "round  2: east (" in out
    assert out.count("; signed by a-1, a-2, a-3") == 2
    assert "combined by all aggregators" in (run.synthetic / "README.md").read_text()


CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "an aggregator's key": (lambda text: swapped(text, "a-2"), "under another key file"),
    "a silo's key": (lambda text: swapped(text, "east"), "under another key file"),
    "an aggregator for a silo": (lambda text: text.replace('"aggregators"', '"others"'), "BROKEN entry"),
}


def swapped(text: str, name: str) -> str:
    """The key file with one digit of a party's key changed."""
    at = text.index('"', text.index(f'"{name}"') + len(name) + 2) + 5
    return f"{text[:at]}{'0' if text[at] != '0' else '1'}{text[at + 1 :]}"


@pytest.mark.parametrize("what", CHANGES)
def test_another_key_file_is_found(
    what: str, real: tuple[RunFolder, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, keys = real
    change, said = CHANGES[what]
    other = tmp_path / "keys.json"
    other.write_text(change(keys.read_text()))
    status, out = audit(run, other, capsys)
    assert status == 1
    assert said in out, out


@pytest.mark.parametrize(
    ("name", "old", "said"),
    [
        ("config.json", '"nodes"', "BROKEN '"),
        ("audit/keys.json", '"a-2"', "BROKEN audit/keys.json is not the key file that this audit goes by"),
    ],
)
def test_what_says_who_aggregated_is_named_when_it_is_altered(
    name: str, old: str, said: str, real: tuple[RunFolder, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, keys = real
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    path = copy.path / name
    path.write_text(path.read_text().replace(old, f"{old[:2]}x{old[3:]}"))
    status, out = audit(copy, keys, capsys)
    assert status == 1
    (first, *_) = [line for line in out.splitlines() if line.startswith("BROKEN")]
    assert first.startswith(said), out
    assert name in first
    # The chain itself holds.
    assert "BROKEN entry" not in out


def test_nodes_are_refused_where_nobody_could_aggregate() -> None:
    for given, said in (
        ({"num-aggregators": 3}, "num-aggregators = 3: acts with aggregators = 'nodes' only"),
        ({"aggregators": "nodes", "secure-aggregation": True}, "secure-aggregation = true with aggregators = 'nodes'"),
        ({"aggregators": "nodes", "dataset": "silos"}, "aggregators = 'nodes' needs key-file"),
    ):
        with pytest.raises(UserError) as error:
            RunConfig.from_run_config({"strategy": "fedavg", **given})  # type: ignore[dict-item]
        assert said in str(error.value)
