"""The page of :mod:`fedsynth.output.report`; in a Python file because Flower's app bundles take no HTML."""

from __future__ import annotations

_STYLE = """
body { margin: 0 auto; max-width: 980px; padding: 24px 20px 60px; background: #fff; color: #222;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 6px; font-size: 27px; line-height: 1.2; }
h2 { margin: 38px 0 6px; padding-top: 14px; border-top: 1px solid #ddd; font-size: 19px; }
p { margin: 6px 0 12px; max-width: 75ch; }
.lead { font-size: 17px; }
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
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; margin: 8px 0 4px; }
summary { cursor: pointer; color: #0a5a9c; }
.chosen { padding: 1px 7px; border-radius: 9px; background: #eef4fa; color: #0a5a9c; font-size: 12px;
  white-space: nowrap; }
"""

_MACROS = """
{% macro picture(image, alt) %}
<img src="{{ image.uri }}" width="{{ image.width }}" alt="{{ alt }}">
{% endmacro %}
{% macro cell(value) %}
<td{% if value is number and value is not boolean %} class="number"{% endif %}>{{ value | show }}</td>
{% endmacro %}
{% macro head(name, rows) %}
{% set first = rows | map(attribute=name) | select("defined") | first %}
<th{% if first is number and first is not boolean %} class="number"{% endif %}>{{ name }}</th>
{% endmacro %}
"""

TEMPLATE = (
    _MACROS
    + """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ content.title }}</title>
<style>"""
    + _STYLE
    + """</style>
</head>
<body>
<h1>{{ content.title }}</h1>
<p class="lead">{{ content.explanation }}</p>
<ul class="tiles">
{% for label, value in content.headline.items() %}
<li><b>{{ value | show }}</b><span>{{ label }}</span></li>
{% endfor %}
</ul>

<h2 id="images">{{ "Synthetic images" if content.real_images is none else "Real beside synthetic" }}</h2>
{% if content.real_images is none %}
<p>One row a class. Real images stay with the institutions that own them (the silos), so none is shown here.</p>
{% else %}
<p>One row a class: real images on the left, synthetic ones on the right. They are the first of each class, not a
selection.</p>
{% endif %}
{{ picture(pictures.images, "Grid of example images, one row a class") }}
{% if hidden_classes %}
<p class="note">{{ hidden_classes }} more classes are not shown.</p>
{% endif %}

{% if content.results %}
<h2 id="results">How good the images are</h2>
<p>The measurement with real images in place of the synthetic ones is the ceiling: nothing synthetic is expected
to beat it.</p>
<div class="scroll"><table>
<thead><tr><th>measure</th>
{% for name in result_columns %}{{ head(name, content.results.values()) }}{% endfor %}</tr></thead>
<tbody>
{% for measure, row in content.results.items() %}
<tr><th scope="row">{{ measure }}</th>{% for name in result_columns %}{{ cell(row.get(name)) }}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if content.silos or "labels" in pictures %}
<h2 id="silos">What each silo held</h2>
<p>A silo is one institution with its own images.</p>
{% endif %}
{% if "labels" in pictures %}
<p class="note">Images of each class in each silo; an empty field means none.</p>
{{ picture(pictures.labels, "Table of image counts, silos by classes") }}
{% endif %}
{% if content.silos %}
<div class="scroll"><table>
<thead><tr>{% for name in silo_columns %}{{ head(name, content.silos) }}{% endfor %}</tr></thead>
<tbody>
{% for row in content.silos %}
<tr>{% for name in silo_columns %}{{ cell(row.get(name)) }}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if "losses" in pictures or round_pictures %}
<h2 id="training">How training went</h2>
{% endif %}
{% if "losses" in pictures %}
<p>Each line is one silo's model learning to remove noise from its images; lower is better, and flat means learned.</p>
{{ picture(pictures.losses, "Training loss of every silo against the step") }}
{% endif %}
{% for image in round_pictures %}
{{ picture(image, "One metric against the round") }}
{% endfor %}

{% if cost %}
<h2 id="cost">What it cost</h2>
<p class="note">Traffic is counted as sent, after serialisation.</p>
<table><tbody>
{% for label, value in cost.items() %}
<tr><th scope="row">{{ label }}</th><td class="number">{{ value }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}

<h2 id="limits">What to be careful about</h2>
<ul>
{% for sentence in limits %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>

{% if content.settings %}
<h2 id="settings">Settings</h2>
<details><summary>All {{ content.settings | length }} settings; those marked <span class="chosen">chosen</span> were
left to the program</summary>
<table class="long"><tbody>
{% for key, value in content.settings.items() %}
<tr><th scope="row">{{ key }}</th><td>{{ value | setting }}
{% if key in content.resolved %}<span class="chosen">chosen</span>{% endif %}</td></tr>
{% endfor %}
</tbody></table></details>
{% endif %}
</body>
</html>
"""
)
