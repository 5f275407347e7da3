"""The body of the page of :mod:`fedsynth.output.comparison`; in Python because Flower's app bundles take no HTML."""

from __future__ import annotations

_SETTINGS_TABLE = """
{% macro settings_table(settings) %}
<div class="scroll"><table>
<thead><tr><th>setting</th>{% for label in labels %}<th>{{ label }}</th>{% endfor %}</tr></thead>
<tbody>
{% for key, row in settings.items() %}
<tr><th scope="row">{{ key }}</th>{% for label in labels %}<td>{{ row[label] | setting }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
"""

BODY = (
    _SETTINGS_TABLE
    + """<h1>{{ title }}</h1>
<p class="lead">{{ content.lead }}</p>
{% if content.warnings %}
<h2 id="warnings">Before you compare</h2>
<ul>
{% for sentence in content.warnings %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% endif %}

<h2 id="measures">How good the images are</h2>
<p>One row holds runs that differ in their seed alone. Numbers are means ± half of the 95 % interval (Student's t);
a single run has no interval. <b>Bold</b>: the best of its column, if its interval touches no other row's; where a
row has no interval, nothing is bold.</p>
{% if "measures" in pictures %}
{{ picture(pictures.measures, "Every run as a dot and the interval of every row as a bar, for each measure") }}
<p class="note">A dot is a run, a bar the 95 % interval of the mean.</p>
{% endif %}
{% for table in content.tables %}
<h3>{{ table.title }}</h3>
<div class="scroll"><table>
<thead><tr><th>runs that differ in seed only</th>
{% for name in table.columns %}<th class="number">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for label, cells in table.rows.items() %}
<tr><th scope="row">{{ label }}</th>
{% for cell in cells %}
<td class="number">{% if cell.best %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}

{% if samples %}
<h2 id="images">Images of one run per row</h2>
<p>The first images of each class, not a selection. From the top, in every picture: {{ classes | join(", ") }}.
{% if hidden_classes %}{{ hidden_classes }} more classes are not shown.{% endif %}</p>
{% for label, sample in samples.items() %}
<figure style="display: inline-block; vertical-align: top; margin: 0 14px 18px 0;
  max-width: {{ sample.picture.width }}px">
<figcaption><b>{{ label }}</b><br><span class="note">{{ sample.source }}</span></figcaption>
{{ picture(sample.picture, "Synthetic images of " ~ label ~ ", one row per class") }}
</figure>
{% endfor %}
{% endif %}

{% if round_pictures %}
<h2 id="rounds">How the rounds went</h2>
<p>Each line is a run; each colour is a row of the tables. Quality is measured at the end only; these are the numbers
that at least two rows have for every round.</p>
{% for name, image in round_pictures.items() %}
{{ picture(image, name ~ " against the round, one line per run") }}
{% endfor %}
{% endif %}

{% if content.settings or content.filled_in %}
<h2 id="settings">Which settings differ</h2>
{% endif %}
{% if content.settings %}
<p class="note">"auto": chosen by the program, or not a setting of that method.</p>
{{ settings_table(content.settings) }}
{% endif %}
{% if content.filled_in %}
<details><summary>Settings that differ only because each method has its own default</summary>
{{ settings_table(content.filled_in) }}
</details>
{% endif %}

<h2 id="runs">The runs</h2>
<div class="scroll"><table class="long">
<thead><tr>{% for name in content.runs[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for run in content.runs %}
<tr>{% for value in run.values() %}<td>{{ value | setting }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
"""
)
