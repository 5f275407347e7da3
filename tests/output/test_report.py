from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parsed_page import ParsedPage
from PIL import Image

from fedsynth.output import Embedding, NearestImages, ReportContent, ReportTable, write_report

ATTACK = '<script>alert("x")</script>'


@pytest.fixture
def content() -> ReportContent:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8), np.arange(12) % 3
    return ReportContent(
        title="Three silos",
        explanation="Three silos drew twelve images.",
        classes=("a", "b", "c"),
        synthetic_images=images,
        synthetic_labels=labels,
        headline={"accuracy": "92 %", "synthetic images": 1437},
        results={
            "accuracy": {"synthetic": 0.925, "real data": 0.969, "measured in": "pixels", "N": 500},
            "coverage": {"synthetic": 0.8, "measured in": "classifier features", "N": 500},
        },
        real_images=images[::-1],
        real_labels=labels[::-1],
        silos=[{"silo": "clinic", "images": 40}, {"silo": "ward", "images": 2, "note": "stopped early"}],
        silo_names=("clinic", "ward"),
        label_counts=np.array([[10, 20, 10], [2, 0, 0]]),
        losses={"clinic": [(1, 1.0), (2, 0.5)], "ward": [(1, 0.9)]},
        rounds=[{"round": 1, "loss": 0.5}, {"round": 2, "loss": 0.4}],
        round_keys=["loss"],
        cost={"rounds": 25, "bytes-up": 3.21e7, "bytes_down": 1500, "client-seconds": 612, "wall-seconds": 372},
        settings={"rounds": 25, "prior": "class", "seed": 20260101},
        resolved={"prior"},
        limits=["Simulated silos."],
        verdict="Usable for training: 92.5 % against 96.9 %.",
        origin={"made": "2026-01-02 10:00", "data set": "three wards"},
        command="fedsynth run --strategy=dfd",
        round_meanings={"loss": "Lower is better."},
    )


def written(content: ReportContent, folder: Path) -> ParsedPage:
    write_report(folder / "report.html", content)
    return ParsedPage(folder / "report.html")


def test_the_page_has_every_section_number_and_picture(content: ReportContent, tmp_path: Path) -> None:
    page = written(content, tmp_path)
    assert page.headings() == ["images", "results", "silos", "training", "cost", "limits", "settings"]
    for text in (
        "Three silos drew twelve images.",
        "92 %",
        "1,437",
        "0.925",
        "0.969",
        "classifier features",
        "500",
        "stopped early",
        "32.1 MB",
        "1.5 kB",
        "10 min 12 s",
        "6 min 12 s",
        "20260101",
        "Simulated silos.",
        "Usable for training: 92.5 % against 96.9 %.",
        "three wards",
        "fedsynth run --strategy=dfd",
        "Lower is better.",
    ):
        assert text in page.text
    assert any("not differentially private" in text for text in page.text)
    assert page.after("coverage", 5) == ["coverage", "0.800", "-", "classifier features", "500"]
    assert page.after("prior", 4) == ["prior", "class", "chosen", "seed"]
    page.check_sealed()
    names = ["images.png", "labels.png", "losses.png", "rounds-1.png"]
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == names
    assert page.pictures() == [(tmp_path / "figures" / name).read_bytes() for name in names]
    for png in page.pictures():
        assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 1


def test_user_text_is_shown_and_never_run(content: ReportContent, tmp_path: Path) -> None:
    hostile = replace(
        content,
        title=ATTACK,
        explanation=ATTACK,
        classes=(ATTACK, "b", "c"),
        headline={ATTACK: ATTACK},
        results={ATTACK: {ATTACK: ATTACK}},
        silos=[{ATTACK: ATTACK}],
        silo_names=(ATTACK, "{{ 7 * 7 }}"),
        losses={ATTACK: [(1, 1.0)]},
        cost={ATTACK: 1},
        settings={ATTACK: ATTACK, "template": "{{ 7 * 7 }}"},
        limits=[ATTACK],
        verdict=ATTACK,
        origin={ATTACK: ATTACK},
        command=ATTACK,
        tables=[ReportTable(ATTACK, ATTACK, {ATTACK: {ATTACK: ATTACK}})],
        round_meanings={"loss": ATTACK},
    )
    page = written(hostile, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(ATTACK) >= 21
    assert {ATTACK} < {attributes.get("data-label") for _, attributes in page.tags}
    assert "{{ 7 * 7 }}" in page.text


def test_a_bare_report_leaves_out_what_is_missing(content: ReportContent, tmp_path: Path) -> None:
    bare = ReportContent("T", "E", content.classes, content.synthetic_images, content.synthetic_labels, {}, {})
    page = written(bare, tmp_path)
    assert page.headings() == ["images", "limits"]
    assert "Synthetic images" in page.text
    assert not any("Real beside" in text or "on the left" in text for text in page.text)
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["images.png"]


def test_pictures_of_an_evaluation_have_a_section_each(content: ReportContent, tmp_path: Path) -> None:
    images = content.synthetic_images[:4]
    measured = replace(
        content,
        per_class={"recall": {"a": 0.5, "c": 0.75}},
        per_class_reference={"recall": {"a": 0.9}},
        nearest=NearestImages(images, images, images, np.ones(4), np.ones(4), "pixels", 2, 0.5),
        embedding=Embedding(np.eye(2), np.arange(2), np.array([True, False]), "features of a classifier"),
    )
    page = written(measured, tmp_path)
    assert page.headings()[1:6] == ["results", "classes", "copies", "map", "silos"]
    names = ("images", "per-class", "nearest", "embedding", "labels", "losses", "rounds-1")
    assert page.pictures() == [(tmp_path / "figures" / f"{name}.png").read_bytes() for name in names]
    text = " ".join(page.text)
    assert "distances between neighbours in a column (in pixels;" in text
    assert "(in features of a classifier)" in text
    assert "means nothing (t-SNE)" in text


def test_rows_are_grouped_and_explained(content: ReportContent, tmp_path: Path) -> None:
    results = {"recall": {"N": 5, "synthetic": 0.5, "better": "higher", "real": 0.75}, "coverage": {"synthetic": 0.8}}
    meanings = {"coverage": "seen <b> share"}
    page = written(replace(content, results=results, result_groups={"coverage": ATTACK}, meanings=meanings), tmp_path)
    # What is compared stands side by side, first.
    head = ["measure", "synthetic", "real", "N", "better"]
    rows = ["recall", "0.500", "0.750", "5", "higher", ATTACK, "coverage", "seen <b> share", "0.800"]
    assert page.after("measure", 14) == head + rows


def test_many_classes_are_cut_and_counted(content: ReportContent, tmp_path: Path) -> None:
    many = replace(content, classes=[f"c{i}" for i in range(25)], label_counts=None)
    page = written(many, tmp_path)
    assert "5 more classes are not shown." in page.text
    assert Image.open(io.BytesIO(page.pictures()[0])).height < 3000


def test_the_same_content_gives_the_same_page(content: ReportContent, tmp_path: Path) -> None:
    written(content, tmp_path / "a")
    written(content, tmp_path / "b")
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()
