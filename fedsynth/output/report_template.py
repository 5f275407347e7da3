"""The body of the page of :mod:`fedsynth.output.report`; in Python because Flower's app bundles take no HTML."""

from __future__ import annotations

BODY = """<h1>{{ title }}</h1>
<p class="lead">{{ content.explanation }}</p>
{% if content.verdict %}
<p class="verdict">{{ content.verdict }}</p>
{% endif %}
<ul class="tiles">
{% for label, value in content.headline.items() %}
<li><b>{{ value | show }}</b><span>{{ label }}</span></li>
{% endfor %}
</ul>
{% if content.origin %}
<p class="note">
{% for label, said in content.origin.items() %}
<span class="fact"><b>{{ label }}</b> {{ said }}</span>
{% endfor %}
</p>
{% endif %}

<h2 id="images">{{ "Synthetic images" if content.real_images is none else "Real beside synthetic" }}</h2>
{% if content.real_images is none %}
<p>One row per class. Real images stay with the institutions that own them (the silos), so none is shown here.</p>
{% else %}
<p>One row per class: real images on the left, synthetic ones on the right. They are the first of each class, not a
selection; a grey square means that the set has no further image of that class.</p>
{% endif %}
{{ picture(pictures.images, "Grid of example images, one row per class") }}
{% if hidden_classes %}
<p class="note">{{ hidden_classes }} more classes are not shown.</p>
{% endif %}

{% if content.results %}
<h2 id="results">How good the images are</h2>
{% if "real" in result_columns %}
<p>Read along a row: what the synthetic images reach and, under “real”, what other real images reach when they are
measured instead.
Nothing synthetic should beat that by more than chance.
{% if "real + synthetic" in result_columns %}
Under “real + synthetic”, classifiers learn from as many of both.
{% endif %}
{% if "generator" in result_columns %}
“generator”: as many images drawn, with other noise, from the model that was trained on the synthetic ones.
{% endif %}
{% if "±" in result_columns %}
“±” is half of the 95 % interval over several trainings of a classifier, and for kernel distance and inception score
the standard deviation over random subsets.
{% endif %}
</p>
{% endif %}
<div class="scroll"><table class="cards">
<thead><tr><th>measure</th>
{% for name in result_columns %}{{ head(name, content.results.values()) }}{% endfor %}</tr></thead>
{% for heading, rows in groups %}
<tbody>
{% if heading %}
<tr class="group"><th scope="rowgroup" colspan="{{ result_columns | length + 1 }}">{{ heading }}</th></tr>
{% endif %}
{% for measure, row in rows.items() %}
<tr><th scope="row">{{ measure }}
{% if measure in content.meanings %}<span class="meaning">{{ content.meanings[measure] }}</span>{% endif %}</th>
{% set above = loop.previtem[1] if loop.previtem is defined else {} %}
{% for name in result_columns %}
{{ cell(row.get(name), name in numeric_columns, above.get(name), name) }}
{% endfor %}</tr>
{% endfor %}
</tbody>
{% endfor %}
</table></div>
{% endif %}

{% for table in content.tables %}
<h2 id="table-{{ loop.index }}">{{ table.heading }}</h2>
<p>{{ table.explanation }}</p>
<div class="scroll"><table class="cards">
<thead><tr><th></th>
{% for name in table.columns %}{{ head(name, table.rows.values()) }}{% endfor %}</tr></thead>
<tbody>
{% for name, row in table.rows.items() %}
<tr><th scope="row">{{ name }}</th>
{% for column in table.columns %}{{ cell(row.get(column), label=column) }}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}

{% if "per-class" in pictures %}
<h2 id="classes">Class by class</h2>
<p>A good average can hide a class that failed: look for a bar much shorter or longer than the others.
{% if content.per_class_reference %}
A dark line is what real images reach: look for bars far from it.
{% endif %}
A dash means that the measure could not be taken for that class.</p>
{{ picture(pictures["per-class"], "Bars of every measure, one bar per class") }}
{% if hidden_bars %}
<p class="note">{{ hidden_bars }} more classes are not shown.</p>
{% endif %}
{% endif %}

{% if "nearest" in pictures %}
<h2 id="copies">Are training images repeated?</h2>
<p>Read each column from the top: a synthetic image, the training image most like it, and the training image most like
<em>that</em> one. The numbers are the distances between neighbours in a column (in {{ content.nearest.space }}; smaller
is more alike). Two training images show how alike different real images are anyway. A number is
<b class="alarm">red</b> where a synthetic image comes as near to a training image as only one in twenty fresh real
images does: look whether the top two images are the same picture.</p>
{{ picture(pictures.nearest, "Synthetic images above their nearest training images, with distances") }}
{% endif %}

{% if "embedding" in pictures %}
<h2 id="map">Where the synthetic images lie among the real ones</h2>
<p>Each point is an image; images that are alike (in {{ content.embedding.space }}) lie side by side. Rings are real,
filled points synthetic. Where rings have no filled points beside them, something is missing from the synthetic set;
filled points away from all rings resemble no real image. Only neighbours count: how far apart two groups lie, and how
large they are, means nothing (t-SNE).</p>
{{ picture(pictures.embedding, "Real and synthetic images as points of a plane") }}
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
<div class="scroll"><table class="cards">
<thead><tr>{% for name in silo_columns %}{{ head(name, content.silos) }}{% endfor %}</tr></thead>
<tbody>
{% for row in content.silos %}
<tr>{% for name in silo_columns %}{{ cell(row.get(name), label=name) }}{% endfor %}</tr>
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
{% for image, meaning in round_pictures %}
{% if meaning %}
<p>{{ meaning }}</p>
{% endif %}
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

{% if content.settings or content.command %}
<h2 id="settings">Settings</h2>
{% endif %}
{% if content.command %}
<p>This command makes the run again; of folders only the last name is shown.</p>
<pre>{{ content.command }}</pre>
{% endif %}
{% if content.settings %}
<details><summary>All {{ content.settings | length }} settings; those marked <span class="chosen">chosen</span> were
chosen by the program</summary>
<table class="long"><tbody>
{% for key, value in content.settings.items() %}
<tr><th scope="row">{{ key }}</th><td>{{ value | setting }}
{% if key in content.resolved %}<span class="chosen">chosen</span>{% endif %}</td></tr>
{% endfor %}
</tbody></table></details>
{% endif %}
"""
