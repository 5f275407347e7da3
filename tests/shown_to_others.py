"""Run folders as they are given to others: which of their files name a path of this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pages import ROOT

TEXTS = (".json", ".jsonl", ".txt", ".html", ".md")


def files_that_name_this_machine(run: Path) -> set[str]:
    """Return names of files in a run folder that hold a path around it, of the project, the user or Python."""
    places = "|".join(re.escape(str(place)) for place in (run.parent, ROOT, Path.home(), sys.prefix))
    # Encoded pictures hold any few letters.
    named = re.compile(rf"(?<![\w+/])({places})(?![\w+=])")
    files = [path for path in run.rglob("*") if path.suffix in TEXTS]
    assert {"config.json", "log.txt", "metrics.jsonl", "results.json", "README.md"} <= {path.name for path in files}
    said = {str(path.relative_to(run)): path.read_text(encoding="utf-8") for path in files}
    return {name for name, text in said.items() if named.search(text)}
