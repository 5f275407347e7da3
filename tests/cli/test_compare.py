from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_runs import make_run, measured
from PIL import Image
from scipy import stats
from tiny_runs import run_tiny, tiny_settings

from fedsynth.cli import compare
from fedsynth.config import Scalar
from fedsynth.errors import UserError
from fedsynth.output import RunFolder


def run_compare(*words: object) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    compare.add_arguments(parser)
    return compare.execute(*parser.parse_known_args([str(word) for word in words]))


def table_row(printed: str, head: str, label: str) -> str:
    """The line of ``label`` in the first table whose head holds ``head``."""
    lines = printed.splitlines()
    start = next(place for place, line in enumerate(lines) if head in line)
    return next(line for line in lines[start:] if line.startswith(label))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "out" / "c.html"


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of two methods that are far apart in distance and not in accuracy."""
    values = {"dfd": [(7.1, 0.90), (7.3, 0.94), (7.9, 0.92)], "fedavg": [(12.0, 0.95), (12.5, 0.91), (11.8, 0.92)]}
    return [
        make_run(tmp_path / "runs", f"{strategy}-{seed}", measured(*value), strategy=strategy, seed=seed)
        for strategy, row in values.items()
        for seed, value in enumerate(row)
    ]


def test_rows_are_means_with_t_intervals(runs: list[Path], page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"reference-frechet-distance": 2.4, "real-accuracy-mlp": 0.97}
    first = RunFolder(runs[0])
    first.write_results({**(first.read_results() or {}), **extra})
    assert run_compare(*runs, "--output", page) == 0
    printed = capsys.readouterr().out
    assert "2.40" in table_row(printed, "frechet", "real images instead")
    assert "0.970" in table_row(printed, "accuracy", "real images instead")
    for strategy in ("dfd", "fedavg"):
        folders = [path for path in runs if path.name.startswith(strategy)]
        for key, decimals in (("frechet-distance", 2 if strategy == "dfd" else 1), ("accuracy-mlp", 3)):
            values = [json.loads((path / "results.json").read_text())[key] for path in folders]
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            said = f"{np.mean(values):.{decimals}f} ± {(high - low) / 2:.{decimals}f}"
            assert said in table_row(printed, key, strategy)
            assert said in page.read_text()
        assert re.match(rf"{strategy} +3 ", table_row(printed, "frechet", strategy))


def test_only_a_best_value_beyond_doubt_is_bold(
    runs: list[Path], page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_compare(*runs, "--output", page)
    printed = capsys.readouterr().out
    assert re.findall(r"<b>(7\.43 ± [\d.]+)</b>", page.read_text())
    assert "± 1.03 *" in table_row(printed, "frechet", "dfd")
    assert "*" not in table_row(printed, "accuracy", "dfd") + table_row(printed, "accuracy", "fedavg")
    # With a single run among the rows nothing is certain any more.
    run_compare(*runs[:4], "--output", page)
    assert "*" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("estimates", "better", "best"),
    [
        ([(1.0, 0.2), (2.0, 0.7)], "lower", 0),
        ([(1.0, 0.2), (2.0, 0.8)], "lower", None),
        ([(1.0, 0.1), (2.0, 0.1), (5.0, 4.0)], "lower", None),
        ([(1.0, 0.1), None, (2.0, 0.1)], "lower", 0),
        ([(1.0, None), (2.0, 0.1)], "lower", None),
        ([(1.0, 0.1), None], "lower", None),
        ([(1.0, 0.1), (2.0, 0.1)], "near 1", None),
    ],
)
def test_best_row(estimates: list[tuple[float, float | None] | None], better: str, best: int | None) -> None:
    assert compare.best_row(estimates, better) == best


def test_unfinished_and_unmeasured_runs_are_named(
    tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [make_run(tmp_path / "r", f"w{seed}", measured(7 + seed), seed=seed) for seed in (0, 1)]
    killed = make_run(tmp_path / "r", "killed", None, seed=2)
    unmeasured = make_run(tmp_path / "r", "unmeasured", {}, seed=3, evaluate=False)
    alone = make_run(tmp_path / "r", "alone", None, strategy="pooled")
    run_compare(*whole, killed, unmeasured, alone, "--output", page)
    printed = capsys.readouterr().out
    assert re.match(r"dfd +2 of 4 +7\.50 ± 6\.35", table_row(printed, "frechet", "dfd"))
    assert re.match(r"dfd +3 of 4 +25 ", table_row(printed, "bytes-up", "dfd"))
    assert re.match(r"pooled +no results +-", table_row(printed, "frechet", "pooled"))
    assert f"note: {killed} (dfd, seed 2) has not finished (no results.json)" in printed
    assert f"note: {alone} (pooled, seed 0) has not finished" in printed
    assert f"note: {unmeasured} (dfd, seed 3) was not measured" in printed
    assert str(killed) in page.read_text()


def test_repeated_seeds_are_said(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [make_run(tmp_path / "r", name, measured(value)) for name, value in (("a", 7.0), ("b", 7.1))]
    run_compare(*paths, "--output", page)
    assert "note: dfd: seed 0 occurs 2 times; repeated seeds are not independent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("feature-space", ("domain-classifier", "inception"), "only within one feature space"),
        ("n-train", (1000, 500), "only at equal n-train"),
        ("classifier-version", (2, 3), "the classifier of fedsynth was changed in between"),
    ],
)
def test_measures_of_different_kinds_are_not_compared(
    key: str, values: tuple[Any, Any], said: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        make_run(tmp_path / "r", f"{strategy}{seed}", measured(4 * place + seed, **{key: value}), **changes)
        for place, (strategy, value) in enumerate(zip(("dfd", "pooled"), values, strict=True))
        for seed in (0, 1)
        for changes in [{"strategy": strategy, "seed": seed}]
    ]
    run_compare(*paths, "--output", page)
    printed = capsys.readouterr().out
    assert f"note: {key} differs ({values[0]}: dfd; {values[1]}: pooled): " in printed
    assert said in printed
    assert said in page.read_text()


def test_runs_that_name_no_version_of_the_classifier_are_older(
    tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_run(tmp_path / "r", "a", measured(7.0))
    new = make_run(tmp_path / "r", "b", measured(7.0, classifier_version=2), strategy="pooled")
    run_compare(old, new, "--output", page)
    assert "note: classifier-version differs (none: dfd; 2: pooled): " in capsys.readouterr().out
    older = make_run(tmp_path / "r", "c", measured(7.0), strategy="pooled")
    run_compare(old, older, "--output", page)
    assert "classifier-version" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "mnist"}, "dataset differs (digits: dfd; mnist: pooled): numbers from different images"),
        ({"alpha": 0.5}, "alpha differs (0.1: dfd; 0.5: pooled)"),
    ],
)
def test_unlike_data_is_said(
    changes: dict[str, Scalar], said: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_run(tmp_path / "r", "a", measured(7.0))
    run_compare(one, make_run(tmp_path / "r", "b", measured(7.0), strategy="pooled", **changes), "--output", page)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert [said in note for note in notes] == [True]


def test_missing_measures_are_said(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [make_run(tmp_path / "r", "new", measured(7.0, kernel_distance=0.01), seed=0)]
    old = [make_run(tmp_path / "r", "old", measured(7.2, kernel_distance=float("nan")), seed=1)]
    older = [make_run(tmp_path / "r", "older", measured(7.2), strategy="pooled")]
    run_compare(*new, *old, *older, "--output", page)
    printed = capsys.readouterr().out
    assert "note: dfd: not every measured run has kernel-distance (1 of 2)" in printed
    assert "note: pooled: not every measured run has kernel-distance (none of 1)" in printed


def test_page_is_sealed_and_escaped(tmp_path: Path, page: Path) -> None:
    changes: dict[str, Scalar] = {"dataset": "imagefolder"}
    paths = [
        make_run(tmp_path / "r", f"run{n}", measured(7.0), classes=("<b>", "x"), data_root=f"/<i>{n}", **changes)
        for n in (0, 1)
    ]
    run_compare(*paths, "--output", page)
    text = page.read_text()
    assert "&lt;b&gt;, x" in text
    assert "dfd, data-root=/&lt;i&gt;0" in text
    assert "<i>" not in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "default-src 'none'" in text
    figures = page.parent / "c-figures"
    assert sorted(path.name for path in figures.iterdir()) == [
        "images-1.png",
        "images-2.png",
        "measures.png",
        "rounds-loss.png",
    ]
    for path in figures.iterdir():
        with Image.open(path) as image:
            image.verify()


def test_a_real_run(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_tiny(tiny_settings(tmp_path, strategy="local", run_name="local"), report=False)
    assert run_compare(folder.path, "--output", page) == 0
    printed = capsys.readouterr().out
    assert re.match(r"local +1 +1 ", table_row(printed, "bytes-up", "local"))
    assert printed.count("was not measured") == 1
    assert "seed 0, 90 images of 3 silos in turn<" in page.read_text()


def test_tables_name_n_and_feature_space_and_begin_with_what_n_allows(
    tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, first in ((360, "kernel-distance"), (2048, "frechet-distance")):
        run = make_run(tmp_path / "r", f"of-{n}", measured(7.0, kernel_distance=0.1, n=n))
        run_compare(run, "--output", page)
        printed = capsys.readouterr().out
        title = f"Likeness to real images (N = {n:,}, in domain-classifier)"
        assert re.search(rf"^{re.escape(title)}\n +runs  {first}", printed, re.MULTILINE)
        assert title in page.read_text()
        assert "tested on real ones (N = 1,000)" in printed
        # Only the second page takes the place of another.
        assert ("in place of the one that was there" in printed) == (n == 2048)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "nowhere"], "there is no folder 'nowhere'"),
        (["RUN", "runs/*-dfd-*"], "no folder matches the pattern 'runs/*-dfd-*'"),
        (["RUN", "."], "'.' is no run folder"),
        (["RUN", "RUN/."], "is given twice"),
        (["RUN", "--outptu", "x.html"], "unknown option '--outptu'"),
        (["RUN", "--output", "RUN"], "it is a folder; give the name of a file"),
    ],
)
def test_bad_input_is_explained(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "r", "a", measured(7.0))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        run_compare(*(word.replace("RUN", str(run)) for word in words))
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
