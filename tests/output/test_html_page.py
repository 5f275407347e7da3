from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import pytest
from hostile_text import unshown
from matplotlib.figure import Figure
from PIL import Image

from fedsynth.errors import UserError
from fedsynth.output.html_page import MACROS, Picture, document, render, rendered, write_page


def test_a_picture_carries_its_own_bytes() -> None:
    picture = Picture(b"\x89PNG", 7)
    head, _, body = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == b"\x89PNG"


def test_a_figure_is_rendered_at_twice_its_width() -> None:
    picture = rendered(Figure(figsize=(1.5, 0.5)))
    assert picture.width == 150
    assert Image.open(io.BytesIO(picture.png)).size == (300, 100)


def test_values_are_escaped_and_shown_as_people_read_them() -> None:
    page = render("{{ text }} {{ number | show }} {{ number | setting }}", text="<b>&{{ 1 }}", number=1234.5)
    assert page == "&lt;b&gt;&amp;{{ 1 }} 1,234 1234.5"


def test_what_is_not_printable_is_seen_as_its_escape() -> None:
    page = render(MACROS + "{{ text }}{{ cell(text) }}<p>\n</p>", text="a\x1b[2J\u202e\nb")
    assert not unshown(page)
    assert page.count(r"a\x1b[2J\u202e\nb") == 2
    assert page.endswith("<p>\n</p>"), "the template's own line breaks stay"


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        render("{{ absent }}")


def test_numbers_and_the_dashes_below_them_stand_on_the_right() -> None:
    page = render(MACROS + "{{ cell(0.5) }}{{ cell(none, true) }}{{ cell(none) }}{{ cell(true) }}")
    wanted = ['<td class="number">0.500</td>', '<td class="number">-</td>', "<td>-</td>", "<td>true</td>"]
    assert page.strip().splitlines() == wanted


def test_only_long_text_is_replaced_by_as_above() -> None:
    long = "features of a classifier"
    page = render(MACROS + "{{ cell(a, false, a) }}{{ cell(b, false, b) }}{{ cell(a, false, b) }}", a=long, b="pixels")
    assert page.count("as above") == 1
    assert page.count(long) == page.count("pixels") == 1


def test_the_document_is_sealed_and_titled() -> None:
    page = render(document("<p>{{ text }}</p>\n"), title="A & B", text="hello")
    assert page.lstrip().startswith("<!DOCTYPE html>")
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page
    assert "<title>A &amp; B</title>" in page
    assert page.endswith("<body>\n<p>hello</p>\n</body>\n</html>")


def test_page_and_pictures_are_written_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "page.html", "µ", {"a": Picture(b"1", 1)}, tmp_path / "pictures")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == "µ"
    files = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert files == ["new/page.html", "pictures/a.png"]


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", "", {}, tmp_path)
