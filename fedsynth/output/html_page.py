"""What all pages share: style, macros, the document around the body with its content policy, and writing it.

In a Python file because Flower's app bundles take neither HTML nor CSS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fedsynth.disk import explained_writing
from fedsynth.files import atomic_file
from fedsynth.output.figures import PIXELS_PER_INCH, png_bytes
from fedsynth.text import visible
from fedsynth.units import show, show_setting

STYLE: str = """
body { margin: 0 auto; max-width: 980px; padding: 24px 20px 60px; background: #fff; color: #222;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 6px; font-size: 27px; line-height: 1.2; }
h2 { margin: 38px 0 6px; padding-top: 14px; border-top: 1px solid #ddd; font-size: 19px; }
p { margin: 6px 0 12px; max-width: 75ch; }
.lead { font-size: 17px; }
.verdict { margin: 14px 0; padding: 10px 14px; border-left: 4px solid #0a5a9c; background: #f6f8fa; font-size: 17px;
  font-weight: 600; max-width: none; }
.fact { margin-right: 18px; }
pre { padding: 10px 14px; border-radius: 8px; background: #f6f8fa; font-size: 13px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.note { color: #555; font-size: 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 4px; padding: 0; list-style: none; }
.tiles li { flex: 1 1 130px; padding: 10px 14px; border-radius: 8px; background: #eef4fa; }
.tiles b { display: block; font-size: 23px; line-height: 1.25; }
.tiles span { color: #444; font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 12px; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid #e6e6e6; text-align: left; vertical-align: top; }
.long td { overflow-wrap: anywhere; }
th { color: #555; font-weight: 600; }
tbody th { color: #222; font-weight: 400; }
.group th { padding-top: 16px; color: #0a5a9c; font-weight: 600; }
.meaning { color: #666; font-size: 13px; }
span.meaning { display: block; max-width: 46ch; }
.alarm { color: #c62828; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; margin: 8px 0 4px; }
summary { cursor: pointer; color: #0a5a9c; }
.chosen { padding: 1px 7px; border-radius: 9px; background: #eef4fa; color: #0a5a9c; font-size: 12px;
  white-space: nowrap; }
h1, h2, p, li { overflow-wrap: break-word; }
td, tbody th { overflow-wrap: anywhere; }
@media (max-width: 860px) {
  .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block; }
  .cards thead { display: none; }
  .cards tr { padding: 8px 0; border-bottom: 1px solid #ddd; }
  .cards tbody th, .cards td { padding: 1px 0; border: 0; }
  .cards td { display: flex; justify-content: space-between; gap: 16px; text-align: right; white-space: normal; }
  .cards td::before { content: attr(data-label); color: #555; text-align: left; }
  .cards td.none { display: none; }
}
"""
MACROS: str = """
{% macro picture(image, alt) %}
<img src="{{ image.uri }}" width="{{ image.width }}" alt="{{ alt }}">
{% endmacro %}
{% macro cell(value, numeric=false, above="", label="") %}
{% set name %}{% if label %} data-label="{{ label }}"{% endif %}{% endset %}
{% if value is string and value | length > 20 and value == above %}
<td class="meaning"{{ name }}>as above</td>
{% else %}
{% set right = numeric or (value is number and value is not boolean) %}
{% set look = (["number"] if right else []) + (["none"] if label and value is none else []) %}
<td{% if look %} class="{{ look | join(" ") }}"{% endif %}{{ name }}>{{ value | show }}</td>
{% endif %}
{% endmacro %}
{% macro head(name, rows) %}
{% set first = rows | map(attribute=name) | select("defined") | first %}
<th{% if first is number and first is not boolean %} class="number"{% endif %}>{{ name }}</th>
{% endmacro %}
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{{{{ title }}}}</title>
<style>{STYLE}</style>
</head>
<body>
"""


@dataclass(frozen=True)
class Picture:
    """A picture inside a page.

    Attributes:
        png: The file.
        width: Width on the page, CSS pixels.
    """

    png: bytes
    width: int

    @property
    def uri(self) -> str:
        """The picture as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def rendered(figure: Figure) -> Picture:
    """Render a figure at twice the pixels of its size on the page."""
    return Picture(png_bytes(figure), round(figure.get_figwidth() * PIXELS_PER_INCH))


def document(body: str) -> str:
    """Return the template of a whole page around the template of its body; it needs the value ``title``.

    The browser is told to load nothing but pictures and style inside the page, and to run no script.
    """
    return MACROS + _HEAD + body + "</body>\n</html>\n"


def render(template: str, **values: Any) -> str:
    """Fill a template: every value is escaped, also what is not printable in it; an unknown name is an error.

    Filters: ``show`` (a measured value) and ``setting`` (a setting, exactly), see :mod:`fedsynth.units`.
    """
    environment = jinja2.Environment(
        autoescape=True, finalize=_finalised, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(show=show, setting=show_setting)
    return environment.from_string(template).render(values)


def _finalised(value: Any) -> Any:
    # What a macro has made is Markup, and holds the line breaks of its template.
    return visible(value) if type(value) is str else value


def write_page(path: Path, page: str, pictures: Mapping[str, Picture], figures_folder: Path) -> None:
    """Write a page to ``path`` and its pictures to ``figures_folder/<name>.png``, each file whole or not at all.

    Raises:
        UserError: A folder cannot be written.
    """
    with explained_writing(path):
        for name, picture in pictures.items():
            with atomic_file(figures_folder / f"{name}.png") as file:
                file.write_bytes(picture.png)
        with atomic_file(path) as file:
            file.write_text(page, encoding="utf-8")
