from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made_runs import make_run, measured
from PIL import Image
from scipy import stats

from fedsynth.cli import main, table
from fedsynth.cli.sweeps.sweep_file import Sweep
from fedsynth.cli.sweeps.sweep_manifest import Entry, write_manifest
from fedsynth.cli.tables.measures import FIDELITY
from fedsynth.cli.tables.sweep_rows import bold_row, paired_differences, sweep_rows

DISTANCE = FIDELITY[0]
FD = "FD (domain-classifier, N = 360) ↓"
VALUES = {
    "ours": {"dfd": [(4.0, 0.90), (4.4, 0.94), (4.2, 0.95)]},
    "averaging": {"fedavg": [(9.0, 0.91), (9.9, 0.96), (9.3, 0.93)]},
}


def make_sweep(root: Path, values: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[Entry]:
    """A sweep's folder as a sweep leaves it: row -> strategy -> (distance, accuracy) by seed."""
    entries = []
    for row, methods in values.items():
        for strategy, numbers in methods.items():
            for seed, number in enumerate(numbers):
                make_run(root, f"{row}-{seed}", measured(*number), strategy=strategy, seed=seed)
                entries.append(Entry(row, seed, f"{row}-{seed}", f"{row}{seed}", {}, "finished"))
    write_manifest(Sweep(root / "s.toml", root, ()), entries)
    return entries


def rewrite(root: Path, entries: Sequence[Entry]) -> None:
    write_manifest(Sweep(root / "s.toml", root, ()), entries)


def printed_table(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["table", *map(str, words)]) == 0
    return capsys.readouterr().out


def cells(printed: str, title: str, row: str) -> dict[str, str]:
    """Head -> cell of a row of a Markdown table."""
    lines = printed.split(f"### {title}")[1].split("###")[0].strip().splitlines()
    head, line = lines[0], next(line for line in lines if line.startswith(f"| {row} "))
    names, texts = ([word.strip() for word in text.strip("|").split("|")] for text in (head, line))
    return dict(zip(names, texts, strict=True))


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave out the pictures, which take most of the time; ``undo()`` brings them back."""
    monkeypatch.setattr(table, "trade_offs", lambda rows: {})
    return monkeypatch


def test_rows_are_means_with_t_intervals_and_say_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path / "s", VALUES)
    printed = printed_table(capsys, tmp_path / "s")
    low, high = stats.t.interval(0.95, 2, 4.2, stats.sem([4.0, 4.4, 4.2]))
    row = cells(printed, "Fidelity and utility", "ours")
    assert row[FD] == f"**4.20 ± {(high - low) / 2:.2f}**" == "**4.20 ± 0.50**"
    assert row["seeds"] == "3"
    assert row["MLP ↑"].startswith("0.930 ± ")
    cost = cells(printed, "Cost of a run", "averaging")
    assert (cost["rounds"], cost["down"], cost["up"], cost["client time"]) == ("25", "35 MB", "34 MB", "5 min 00 s")
    assert "N = 360 synthetic and as many real test images, in domain-classifier features: FD is no FID" in printed
    assert "Inception" not in printed


def test_what_is_promised_and_what_an_attacker_finds_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "s"
    entries = make_sweep(root, {"averaging": VALUES["averaging"]})
    assert "Who was trained on" not in printed_table(capsys, root)
    for seed, (auc, highest) in enumerate([(0.6, 0.7), (0.7, 0.9), (0.8, 0.8)]):
        attacked = {"epsilon-membership-auc": auc, "epsilon-membership-auc-highest": highest}
        attacked |= {"released-membership-auc": 0.5, "privacy-epsilon": 10.0}
        make_run(root, f"ours-{seed}", measured(4.0) | attacked, seed=seed)
        entries.append(Entry("ours", seed, f"ours-{seed}", f"ours{seed}", {}, "finished"))
    rewrite(root, entries)
    printed = printed_table(capsys, root)
    row = cells(printed, "Who was trained on", "ours")
    half = 4.303 * 0.1 / 3**0.5
    assert (row["ε"], row["AUC, models"], row["AUC, images"]) == ("10", f"0.700 ± {half:.3f}", "0.500 ± 0.000")
    assert row["AUC, model that shows most"].startswith("0.800 ± ")
    assert cells(printed, "Who was trained on", "averaging")["ε"] == "-"
    assert "ε: what each run promises of one training image more or less" in printed
    _, line = csv.DictReader(io.StringIO(printed_table(capsys, root, "--format", "csv")))
    assert float(line["epsilon-membership-auc"]) == pytest.approx(0.7)


def test_missing_and_failed_runs_are_said_in_their_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    entries = make_sweep(root, VALUES)
    (root / "ours-1" / "results.json").unlink()
    for seed in (0, 1, 2):
        (root / f"averaging-{seed}" / "results.json").unlink()
    (root / "averaging-2" / "config.json").unlink()
    changed = [
        entries[0],
        replace(entries[1], status="failed", reason="silo 3 | is away"),
        entries[2],
        replace(entries[3], status="finished"),
        replace(entries[4], status="running"),
        replace(entries[5], status="waiting"),
    ]
    rewrite(root, changed)
    printed = printed_table(capsys, root)
    ours = next(line for line in printed.splitlines() if line.startswith("| ours"))
    assert "2 of 3 seeds; seed 1 failed: silo 3 \\| is away" in ours
    # The two that are left: mean 4.1, t(1) = 12.706, s/sqrt(2) = 0.1.
    assert " 4.10 ± 1.27 " in ours
    assert "**" not in ours
    averaging = cells(printed, "Fidelity and utility", "averaging")
    assert averaging["seeds"] == (
        "0 of 3 seeds; seed 0 is gone: its folder has no results any more; seed 1 has not finished; seed 2 has not been"
        " run"
    )
    assert averaging[FD] == "-"


def test_rows_that_nobody_has_started_are_one_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    entries = make_sweep(root, VALUES)
    for seed in (0, 1, 2):
        shutil.rmtree(root / f"averaging-{seed}")
    rewrite(root, [*entries[:3], *(replace(entry, status="waiting") for entry in entries[3:])])
    printed = printed_table(capsys, root)
    assert "no run of these rows has been started: averaging" in printed
    assert not any(line.startswith("| averaging") for line in printed.splitlines())


@pytest.mark.parametrize(
    ("values", "best"),
    [
        # Half intervals of three values m - d, m, m + d are 4.303 d / sqrt(3) = 2.484 d.
        ([(1.0, 0.1), (2.0, 0.3)], 0),  # up to 1.248, and from 1.255
        ([(1.0, 0.1), (2.0, 0.31)], None),  # from 1.230
        ([(1.0, 0.1), (2.0, 0.1), (9.0, 4.0)], None),
        # A single run makes only the first two places doubtful.
        ([(1.0, 0.1), (9.0, 0.1), (20.0, None)], 0),
        ([(1.0, 0.1), (9.0, 0.1), (5.0, None)], None),
    ],
)
def test_bold_only_where_intervals_are_apart(
    values: list[tuple[float, float | None]], best: int | None, tmp_path: Path
) -> None:
    seeds = [[m] if d is None else [m - d, m, m + d] for m, d in values]
    runs = {str(k): {"dfd": [(distance, 0.9) for distance in row]} for k, row in enumerate(seeds)}
    rows = sweep_rows(tmp_path / "s", make_sweep(tmp_path / "s", runs))
    assert bold_row(rows, DISTANCE) == best


def test_an_incomplete_row_is_never_bold(tmp_path: Path) -> None:
    entries = make_sweep(tmp_path, {"a": {"dfd": [(1.0, 0.9)] * 3}, "b": {"dfd": [(9.0, 0.9), (9.1, 0.9)]}})
    assert bold_row(sweep_rows(tmp_path, entries), DISTANCE) == 0
    (tmp_path / "a-2" / "results.json").unlink()
    assert bold_row(sweep_rows(tmp_path, entries), DISTANCE) is None


def test_differences_are_paired_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    entries = make_sweep(root, VALUES)
    ours, averaging = sweep_rows(root, entries)
    differences = np.array([9.0, 9.9, 9.3]) - np.array([4.0, 4.4, 4.2])
    low, high = stats.ttest_rel([9.0, 9.9, 9.3], [4.0, 4.4, 4.2]).confidence_interval(0.95)
    found, pairs = paired_differences(averaging, ours, DISTANCE)
    assert found == pytest.approx((differences.mean(), (high - low) / 2))
    assert pairs == 3
    printed = printed_table(capsys, root, "--against", "ours")
    assert cells(printed, "Differences to ours, paired by seed", "averaging")[FD] == "+5.20 ± 0.66"
    (root / "ours-1" / "results.json").unlink()
    ours, averaging = sweep_rows(root, entries)
    found, pairs = paired_differences(averaging, ours, DISTANCE)
    assert found is not None
    assert found[0] == pytest.approx((5.0 + 5.1) / 2)
    assert pairs == 2
    printed = printed_table(capsys, root, "--against", "averaging")
    assert cells(printed, "Differences to averaging, paired by seed", "ours")[FD].startswith("−5.05 ± ")


def test_csv_has_every_number_unrounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = make_sweep(tmp_path / "s", {'a,"b"': VALUES["ours"], "c": VALUES["averaging"]})
    rewrite(tmp_path / "s", [*entries, Entry("c", 7, "c-7", "c7", {}, "failed", "out of\nmemory, twice")])
    lines = list(
        csv.DictReader(io.StringIO(printed_table(capsys, tmp_path / "s", "--format", "csv", "--against", "c")))
    )
    assert [line["row"] for line in lines] == ['a,"b"', "c"]
    assert float(lines[0]["frechet-distance"]) == pytest.approx(4.2, abs=1e-12)
    half = stats.t.ppf(0.975, 2) * stats.sem([4.0, 4.4, 4.2])
    assert float(lines[0]["frechet-distance ±"]) == pytest.approx(half)
    assert float(lines[0]["frechet-distance minus c"]) == pytest.approx(-5.2)
    assert (lines[0]["runs"], lines[0]["planned"], lines[0]["missing"], lines[0]["n"]) == ("3", "3", "", "360")
    assert (lines[1]["runs"], lines[1]["planned"]) == ("3", "4")
    assert lines[1]["missing"] == "seed 7 failed: out of\nmemory, twice"
    assert float(lines[1]["bytes-up"]) == 34e6


def test_latex_escapes_names_and_sets_the_best_in_bold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path / "s", {r"50%_{a}\&$#^~": VALUES["ours"], "c": VALUES["averaging"]})
    printed = printed_table(capsys, tmp_path / "s", "--format", "latex")
    name = r"50\%\_\{a\}\textbackslash{}\&\$\#\textasciicircum{}\textasciitilde{}"
    assert rf"{name} & 3 & \textbf{{4.20 $\pm$ 0.50}} & " in printed
    assert r"FD (domain-classifier, N = 360) $\downarrow$" in printed
    body = [line for line in printed.splitlines() if not line.startswith("%")]
    # An unescaped special character anywhere would not compile.
    assert not any(letter in line.replace(f"\\{letter}", "") for line in body for letter in "#%_")
    for line in body:
        if line.endswith("\\\\"):
            columns = line.replace(r"\&", "").count("&")
            assert columns in (3, 5)


def test_the_papers_rows_stand_beside_ours_and_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "s"
    make_run(root, "a-0", measured(55.0), dataset="mnist", seed=0)
    rewrite(root, [Entry("a", 0, "a-0", "a0", {}, "finished")])
    printed = printed_table(capsys, root)
    assert cells(printed, "Fidelity and utility", r"DfD \[Hahn & Lee 2025]")[FD] == "37.7 (FID)"
    assert cells(printed, "Fidelity and utility", r"FedDiffuse \[Hahn & Lee 2025]")["MLP ↑"] == "0.775"
    assert "the number N of images it was measured with is not known to us" in printed
    assert "**" not in printed.split("###")[1]


def test_inceptions_distance_is_called_fid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "a-0", measured(55.3, feature_space="inception-v3-compat"))
    rewrite(tmp_path, [Entry("a", 0, "a-0", "a0", {}, "finished")])
    assert cells(printed_table(capsys, tmp_path), "Fidelity and utility", "a")["FID (N = 360) ↓"] == "55.3"


def test_rows_measured_in_two_spaces_are_said_and_not_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = make_sweep(tmp_path, {"a": {"dfd": [(1.0, 0.9), (1.1, 0.9)]}})
    for seed in (0, 1):
        run = measured(9.0 + seed / 10, feature_space="pixels")
        make_run(tmp_path, f"b-{seed}", run, strategy="pooled", seed=seed)
    both = [*entries, *(Entry("b", seed, f"b-{seed}", f"b{seed}", {}, "finished") for seed in (0, 1))]
    rewrite(tmp_path, both)
    printed = printed_table(capsys, tmp_path)
    assert "**" not in printed
    assert "feature-space differs" in printed
    assert paired_differences(*sweep_rows(tmp_path, both), DISTANCE) == (None, 0)


def test_detail_has_precision_recall_and_f1_beside_the_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"accuracy-cnn": 0.91, "macro-precision-cnn": 0.92, "macro-recall-cnn": 0.93, "macro-f1-cnn": 0.94}
    make_run(tmp_path, "a-0", {**measured(5.1, inception_score=9.5), **extra})
    rewrite(tmp_path, [Entry("a", 0, "a-0", "a0", {}, "finished")])
    row = cells(printed_table(capsys, tmp_path), "Classification in detail", "a")
    assert [row[f"CNN {word} ↑"] for word in ("accuracy", "precision", "recall", "F1")] == [
        "0.910",
        "0.920",
        "0.930",
        "0.940",
    ]
    assert (row["IS ↑"], row[FD]) == ("9.50", "5.10")


def test_pictures_show_quality_against_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: pytest.MonkeyPatch
) -> None:
    pictures.undo()
    make_sweep(tmp_path / "s", VALUES)
    printed_table(capsys, tmp_path / "s")
    first = {}
    for name in ("quality-rounds", "quality-bytes"):
        path = tmp_path / "s" / "figures" / f"{name}.png"
        assert np.asarray(Image.open(path)).std() > 5
        first[name] = path.read_bytes()
    assert first["quality-rounds"] != first["quality-bytes"]
    main(["table", str(tmp_path / "s"), "--output", str(tmp_path / "out" / "t.md")])
    assert (tmp_path / "out" / "t-figures" / "quality-bytes.png").read_bytes() == first["quality-bytes"]
    assert (tmp_path / "out" / "t.md").read_text().startswith("### Fidelity and utility\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}", "--against", "averagin"], "unknown row 'averagin': did you mean 'averaging'?"),
        (["{}", "--format", "latec"], "unknown format 'latec': did you mean 'latex'?"),
        (["{}", "--formt", "csv"], "unknown option '--formt'"),
        (["{}/ours-0"], "table takes the folder of one sweep; for single runs: 'fedsynth compare RUN RUN ...'"),
        (["{}", "{}/ours-0"], "table takes the folder of one sweep; for single runs"),
        (["{}/empty"], "holds no sweep.json: start the sweep with 'fedsynth sweep'"),
        (["{}/nothing.toml"], "No such file or directory"),
        (["{}", "--output", "{}"], "it is a folder; give the name of a file"),
    ],
)
def test_what_cannot_be_shown_is_said(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, VALUES)
    (tmp_path / "empty").mkdir()
    assert main(["table", *(word.format(tmp_path) for word in words)]) == 2
    assert said in capsys.readouterr().err
