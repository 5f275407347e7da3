from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsynth.chain import START, Link, chained
from fedsynth.cli import main
from fedsynth.policy import SiloPolicy, document
from fedsynth.privacy.accounting import Geometric, Mechanism
from fedsynth.privacy.spending import Spending

NORTH = Path("silo") / "state" / "north" / "privacy.jsonl"
COUNTS = Spending("counts", Geometric(4.0), "da7a", "17", "2026-01-01T09:00:00+00:00")
SPENDINGS = [
    COUNTS,
    Spending("statistics", Mechanism(100.0), "da7a", "17", "2026-01-01T09:10:00+00:00"),
    *[Spending("training", Mechanism(200.0, 0.5, 20), "da7a", "18", f"2026-01-02T09:0{k}:00+00:00") for k in (0, 1)],
]


def write_account(path: Path, spendings: list[Spending]) -> Link:
    path.parent.mkdir(parents=True, exist_ok=True)
    last = START
    with path.open("wb") as file:
        for spending in spendings:
            line, last = chained(spending.content(), last)
            file.write(line)
    return last


@pytest.fixture
def head(project: Path) -> Link:
    head = write_account(project / NORTH, SPENDINGS)
    (project / "silo" / "silo-policy.toml").write_text(document(SiloPolicy(privacy_epsilon=2.0)), encoding="utf-8")
    (project / "silo" / "privacy-note-north.json").write_text(json.dumps({"entry": head.number, "hash": head.hash}))
    return head


def test_entries_and_what_is_left(head: Link, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["silo", "privacy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"account  {project / NORTH}: 4 lines",
        "spent  2026-01-01T09:00:00+00:00  counts      geometric noise of scale 4, sensitivity 1; run 17, images da7a",
        "spent  2026-01-01T09:10:00+00:00  statistics  Gaussian noise of 100 sensitivities; run 17, images da7a",
        "spent  2026-01-02T09:01:00+00:00  training    2 times 20 steps on a share of 0.5, Gaussian noise of 200 norms;"
        " run 18, images da7a",
    ]
    epsilon, left = float(lines[4].split()[1]), float(lines[5].split()[1])
    assert lines[4].endswith(" at δ = 1e-05, all entries together, as to one image more or less")
    assert lines[5].endswith(" of 'privacy-epsilon = 2.0'")
    assert 0.25 < epsilon < 0.4
    assert epsilon + left == pytest.approx(2.0, abs=1e-3)
    assert lines[6:] == [
        "chain  whole: every line follows from the one before",
        f"noted  the hash in '{project / 'silo' / 'privacy-note-north.json'}' is that of line 4",
        f"head   {head.hash} (entry 4): note it elsewhere",
    ]


def test_another_account_than_the_one_noted_is_exit_status_1(
    head: Link, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_account(project / NORTH, SPENDINGS[:2])
    assert main(["silo", "privacy"]) == 1
    assert "BROKEN no line has the hash that was noted: lines were cut off" in capsys.readouterr().out
    whole = (project / NORTH).read_bytes()
    (project / NORTH).write_bytes(whole.replace(b'"scale":4.0', b'"scale":9.0'))
    assert main(["silo", "privacy"]) == 1
    assert "BROKEN line 1 is altered" in capsys.readouterr().out


def test_what_had_no_noise_has_no_epsilon(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = Spending("training", None, "da7a", "17", "2026-01-01T09:00:00+00:00")
    write_account(project / NORTH, [*[COUNTS, bare] * 21])
    assert main(["silo", "privacy"]) == 0
    said = capsys.readouterr().out
    assert "       2 earlier entries are not shown\n" in said
    assert "training    without noise: no ε bounds it; run 17" in said
    assert "ε      unbounded: see the entries without noise" in said
    assert "the policy sets no budget: 'privacy-epsilon = \"unlimited\"'" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--state-path absent", "there is no privacy.jsonl below '"),
        ("--silo-name south", "the silo has answered nothing, or under another --silo-name"),
        ("--policy absent.toml", "policy 'absent.toml': No such file"),
        ("--polcy x", "unknown option '--polcy'"),
    ],
)
def test_mistakes_are_one_line(given: str, said: str, head: Link, refused: Callable[..., str]) -> None:
    assert said in refused("silo", "privacy", *given.split())
