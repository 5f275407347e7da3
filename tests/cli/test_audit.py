"""``fedsynth audit``: one certified run, and whatever an auditor may find changed in its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from interrupted_runs import resumed
from PIL import Image
from tiny_runs import run_tiny, tiny_settings

from fedsynth.chain import START as CHAIN_START
from fedsynth.chain import chained
from fedsynth.cli import main
from fedsynth.config import Scalar
from fedsynth.output import RunFolder
from fedsynth.output.audit_files import list_files
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import read_known, write_known


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("certified")
    return run_tiny(averaged(folder), report=False)


def averaged(folder: Path) -> dict[str, Scalar]:
    return tiny_settings(
        folder,
        strategy="fedavg",
        aggregators="silos",
        num_clients=3,
        num_samples=6,
        train_steps=2,
        samples_per_client=20,
        block_out_channels="4,4",
        sampling_steps=2,
    )


@pytest.fixture
def run(certified: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    return RunFolder(Path(shutil.copytree(certified.path, tmp_path / "run")))


def audit(run: RunFolder, *words: str) -> int:
    keys = run.audit / "keys.json"
    return main(["audit", str(run.path), *(() if "--keys" in words else ("--keys", str(keys))), *words])


def flip(path: Path, position: int = -20) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_honest_run_holds_and_names_rounds_rosters_signers_and_head(
    certified: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(certified, "--recompute") == 0
    out = capsys.readouterr().out
    assert "quorum 2 of 3 aggregators (byzantine)" in out
    for number in (1, 2):
        assert f"round  {number}: silo-0 (" in out
    assert out.count("signed by silo-0, silo-1, silo-2") == 2
    assert "holds  every line, signature, roster, the final model and every file of the run" in out
    head = out.split("head   ")[1].split()[0]
    assert head in (certified.synthetic / "README.md").read_text()
    assert audit(certified, "--head", head) == 0
    assert audit(certified, "--head", "0" * 64) == 1
    assert "the head noted earlier is in no certificate" in capsys.readouterr().out


def test_a_run_that_went_on_with_more_rounds_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = averaged(tmp_path)
    run_tiny(given, report=False)
    run = run_tiny({**resumed(given), "num-rounds": 3, "train-steps": 3}, report=False)
    assert audit(run, "--recompute") == 0
    out = capsys.readouterr().out
    assert out.count("signed by silo-0, silo-1, silo-2") == 3
    assert "drawn  anew: 0 of 6 images differ by a grey level" in out
    lines = (run.audit / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("published") == 2


@contextmanager
def changed(path: Path) -> Iterator[None]:
    """Change one byte while the block runs."""
    content = path.read_bytes()
    flip(path, -min(20, len(content)))
    yield
    path.write_bytes(content)


@pytest.mark.parametrize("of", ["certified", "composed"])
def test_one_byte_changed_anywhere_a_file_gone_and_a_file_added_are_found_and_named(
    of: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = request.getfixturevalue(of)
    run = RunFolder(Path(shutil.copytree(original.path, tmp_path / "run")))
    keys = ("--keys", str(original.audit / "keys.json"))
    files = [path for path in sorted(run.path.rglob("*")) if path.is_file()]
    evidence = [path for path in files if path.name not in ("log.txt", "status.json", ".log.jsonl.lock")]
    assert len(evidence) == len(files) - 3 > 15
    # Every image goes the same way: one of them stands for all.
    for path in {(path.parent.parent if path.suffix == ".png" else path): path for path in evidence}.values():
        with changed(path):
            assert audit(run, *keys) == 1, path
        out = capsys.readouterr().out
        assert "BROKEN" in out
        assert path.name in out or "line " in out
        assert "holds" not in out
        content = path.read_bytes()
        path.unlink()
        assert audit(run, *keys) != 0, path
        captured = capsys.readouterr()
        assert path.name in captured.out + captured.err
        path.write_bytes(content)
    for name in (
        "synthetic/0/9.png",
        "synthetic/10/0.png",
        "synthetic/log.txt",
        "models/a.bin",
        "audit/extra.json",
    ):
        added = run.path / name
        existed = added.parent.exists()
        added.parent.mkdir(exist_ok=True)
        added.write_bytes(b"later")
        assert audit(run, *keys) == 1
        assert f"{name} is not of this run: it came later" in capsys.readouterr().out
        added.unlink()
        if not existed:
            added.parent.rmdir()
    with (run.audit / "keys.json").open("a") as file:
        file.write("\n")
    (run.path / "log.txt").write_text("no evidence")
    assert audit(run, *keys) == 1
    assert "audit/keys.json is not the key file that this audit goes by, as it was written" in capsys.readouterr().out
    (run.audit / "keys.json").write_bytes((original.audit / "keys.json").read_bytes())
    assert audit(run, *keys) == 0


def test_every_byte_of_the_log_counts(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    log = run.audit / "log.jsonl"
    content = log.read_bytes()
    for position in range(5, len(content), len(content) // 6):
        log.write_bytes(content)
        flip(log, position)
        assert audit(run) == 1, position
    number = content[:position].count(b"\n") + 1
    assert f"line {number} is altered" in capsys.readouterr().out


def rewritten(run: RunFolder, change: Callable[[dict[str, object]], dict[str, object] | None]) -> None:
    """Write the log anew, with a chain of lines that holds: only signatures can tell."""
    log, last, lines = run.audit / "log.jsonl", CHAIN_START, []
    for text in log.read_text().splitlines():
        entry = {key: value for key, value in json.loads(text).items() if key not in ("hash", "number", "previous")}
        if (changed := change(entry)) is not None:
            line, last = chained(changed, last)
            lines.append(line)
    log.write_bytes(b"".join(lines))


def test_a_log_written_anew_is_found_by_its_signatures(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    original = (run.audit / "log.jsonl").read_text()
    for drop, said in (
        (("update", 1, "silo-1"), "round 1: silo-1 has signed no such update"),
        (("certificate", 1, None), "the certificate of round 2 does not follow from that of round 0"),
        (("certificate", 2, None), "another head than the chain's"),
        (("published", None, None), "the last lines of its log are cut off"),
    ):
        (run.audit / "log.jsonl").write_text(original)
        rewritten(run, lambda e, drop=drop: None if (e["event"], e.get("round"), e.get("silo")) == drop else e)
        assert audit(run) == 1
        assert said in capsys.readouterr().out


def test_other_keys_and_what_is_no_certified_run_are_refused(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = read_known(run.audit / "keys.json")
    others = tmp_path / "others.json"
    write_known(others, {name: SecretKeys.generate().public for name in known})
    assert audit(run, "--keys", str(others)) == 1
    assert "signed by a key that is not in the key file" in capsys.readouterr().out
    (run.audit / "log.jsonl").unlink()
    assert audit(run) == 2
    assert "it was run with aggregators = 'server'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("composed")
    settings = tiny_settings(
        folder,
        strategy="dfd",
        aggregators="silos",
        sampler="sde-dpmsolver++",
        dfd_rounds=3,
        num_clients=3,
        num_samples=6,
        train_steps=2,
        samples_per_client=20,
        block_out_channels="4,4",
        copy_check=False,
    )
    return run_tiny(settings, report=False)


def test_a_composed_set_is_audited_from_its_first_noise_to_its_images(
    composed: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(composed, "--recompute") == 0
    out = capsys.readouterr().out
    assert out.count("signed by silo-0, silo-1, silo-2") == 3
    assert "holds  every line, signature, roster, the last level and every file of the run" in out
    name = "audit/last-level.safetensors"
    with changed(composed.path / name):
        assert audit(composed) == 1
    said = capsys.readouterr().out
    assert f"{name} is altered" in said
    assert f"{name} is not what round 3 certifies" in said


def test_images_that_no_certified_prediction_moves_to_are_found_though_all_hashes_were_made_anew(
    composed: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(Path(shutil.copytree(composed.path, tmp_path / "run")))
    path = sorted(run.synthetic.glob("*/*.png"))[0]
    with Image.open(path) as shown:
        pixels = np.array(shown)
    pixels.flat[0] = 255 - pixels.flat[0] if abs(255 - 2 * int(pixels.flat[0])) > 1 else 0
    Image.fromarray(pixels).save(path)
    listed = list_files(run.path, run.audit)
    rewritten(run, lambda e: {**e, "files": listed} if e["event"] == "published" else e)
    assert audit(run) == 1
    assert "1 of 6 images are not those that the last certified prediction moves to" in capsys.readouterr().out


@pytest.mark.parametrize("levels", [1, 2])
def test_a_drawing_may_be_a_grey_level_off_as_on_another_processor_and_no_more(
    run: RunFolder, levels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(run.synthetic.glob("*/*.png"))[0]
    with Image.open(path) as shown:
        pixels = np.array(shown)
    pixels.flat[0] = int(pixels.flat[0]) + (levels if pixels.flat[0] < 128 else -levels)
    Image.fromarray(pixels).save(path)
    listed = list_files(run.path, run.audit)
    rewritten(run, lambda e: {**e, "files": listed} if e["event"] == "published" else e)
    assert audit(run) == 0
    assert audit(run, "--recompute") == levels - 1
    out = capsys.readouterr().out
    assert ("1 of 6 images are not those that the final model draws" in out) == (levels == 2)
    assert f"drawn  anew: {2 - levels} of 6 images differ by a grey level" in out
