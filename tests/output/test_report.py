from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsynth.errors import UserError
from fedsynth.output import Embedding, NearestImages, ReportContent, write_report

ATTACK = '<script>alert("x")</script>'


class Page(HTMLParser):
    """What a browser would see: tags, attributes, the text of every element by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.text.append(" ".join(data.split()))

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.split(",", 1)[1], validate=True) for source in sources]

    def headings(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "h2"]


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
    )


def written(content: ReportContent, folder: Path) -> Page:
    write_report(folder / "report.html", content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_every_section_and_number(content: ReportContent, tmp_path: Path) -> None:
    page = written(content, tmp_path)
    assert page.open == []
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
    ):
        assert text in page.text
    assert any("not differentially private" in text for text in page.text)


def test_absent_cells_are_dashes(content: ReportContent, tmp_path: Path) -> None:
    text = written(content, tmp_path).text
    assert text[text.index("coverage") :][:5] == ["coverage", "0.800", "-", "classifier features", "500"]


def test_resolved_settings_are_marked(content: ReportContent, tmp_path: Path) -> None:
    text = written(content, tmp_path).text
    start = text.index("prior")
    assert text[start : start + 4] == ["prior", "class", "chosen", "seed"]


def test_pictures_decode_and_stand_beside_the_page_too(content: ReportContent, tmp_path: Path) -> None:
    inside = written(content, tmp_path).pictures()
    files = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    assert sorted(files) == ["images.png", "labels.png", "losses.png", "rounds-1.png"]
    assert inside == [files[name] for name in ("images.png", "labels.png", "losses.png", "rounds-1.png")]
    for png in inside:
        assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 1


def test_the_page_asks_for_nothing_from_outside(content: ReportContent, tmp_path: Path) -> None:
    page = written(content, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    )
    page = written(hostile, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(ATTACK) >= 11
    assert "{{ 7 * 7 }}" in page.text


def test_without_real_images_only_synthetic_ones_are_shown(content: ReportContent, tmp_path: Path) -> None:
    page = written(replace(content, real_images=None, real_labels=None), tmp_path)
    assert "Synthetic images" in page.text
    assert not any("Real beside" in text or "on the left" in text for text in page.text)
    assert len(page.pictures()) == 4


def test_a_bare_report_leaves_out_what_is_missing(content: ReportContent, tmp_path: Path) -> None:
    bare = ReportContent("T", "E", content.classes, content.synthetic_images, content.synthetic_labels, {}, {})
    page = written(bare, tmp_path)
    assert page.headings() == ["images", "limits"]
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["images.png"]


def measured(content: ReportContent) -> ReportContent:
    """Return the report with all pictures of an evaluation."""
    images = content.synthetic_images[:4]
    return replace(
        content,
        per_class={"recall": {"a": 0.5, "c": 0.75}},
        per_class_reference={"recall": {"a": 0.9}},
        nearest=NearestImages(images, images, images, np.ones(4), np.ones(4), "pixels", 2, 0.5),
        embedding=Embedding(np.eye(2), np.arange(2), np.array([True, False]), "features of a classifier"),
    )


def test_pictures_of_an_evaluation_have_a_section_each(content: ReportContent, tmp_path: Path) -> None:
    page = written(measured(content), tmp_path)
    assert page.headings()[1:6] == ["results", "classes", "copies", "map", "silos"]
    names = ("images", "per-class", "nearest", "embedding", "labels", "losses", "rounds-1")
    assert page.pictures() == [(tmp_path / "figures" / f"{name}.png").read_bytes() for name in names]
    text = " ".join(page.text)
    assert "distances between neighbours in a column (in pixels;" in text
    assert "(in features of a classifier)" in text
    assert "means nothing (t-SNE)" in text


@pytest.mark.parametrize(("field", "section"), [("per_class", "classes"), ("nearest", "copies"), ("embedding", "map")])
def test_each_of_them_can_be_left_out(content: ReportContent, tmp_path: Path, field: str, section: str) -> None:
    headings = written(replace(measured(content), **{field: None}), tmp_path).headings()
    assert {"classes", "copies", "map"} - set(headings) == {section}


def test_rows_are_grouped_and_explained(content: ReportContent, tmp_path: Path) -> None:
    grouped = replace(content, result_groups={"coverage": ATTACK}, meanings={"coverage": "seen <b> share"})
    text = written(grouped, tmp_path).text
    start = text.index(ATTACK)
    assert text[start - 1] == "500"
    assert text[start : start + 4] == [ATTACK, "coverage", "seen <b> share", "0.800"]


def test_what_is_compared_stands_side_by_side(content: ReportContent, tmp_path: Path) -> None:
    late = replace(content, results={"recall": {"N": 5, "synthetic": 0.5, "better": "higher", "real": 0.75}})
    text = written(late, tmp_path).text
    start = text.index("measure")
    assert text[start : start + 5] == ["measure", "synthetic", "real", "N", "better"]
    assert text[start + 5 : start + 10] == ["recall", "0.500", "0.750", "5", "higher"]


def test_many_classes_are_cut_and_counted(content: ReportContent, tmp_path: Path) -> None:
    many = replace(content, classes=[f"c{i}" for i in range(1000)], label_counts=None)
    page = written(many, tmp_path)
    assert "980 more classes are not shown." in page.text
    assert Image.open(io.BytesIO(page.pictures()[0])).height < 3000


def test_the_same_content_gives_the_same_page(content: ReportContent, tmp_path: Path) -> None:
    written(content, tmp_path / "a")
    written(content, tmp_path / "b")
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()


def test_an_unwritable_place_is_explained(content: ReportContent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", content)
