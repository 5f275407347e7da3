"""README, docs and the other pages: every link within the repository leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import PAGES, ROOT, anchors_of, name_of, targets_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in targets_of(page):
        address = urlsplit(target)
        if address.scheme or address.netloc:
            continue
        file = (page.parent / unquote(address.path)).resolve() if address.path else page
        if not file.exists() or ROOT not in file.parents:
            broken.append(f"{target}: no such file")
        elif address.fragment and unquote(address.fragment) not in anchors_of(file):
            broken.append(f"{target}: no such heading")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w./-])((?:experiments|tests|fedsynth|clients|strategies|docs)/[\w./-]*\w)", text)
    named += re.findall(r"`([\w-]+\.(?:toml|py|sh))`", text) if page.parent.name == "experiments" else []
    assert [name for name in named if not ((ROOT / name).exists() or (page.parent / name).exists())] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        paths = (urlsplit(target).path for target in targets_of(page) if not urlsplit(target).scheme)
        waiting += [(page.parent / unquote(path)).resolve() for path in paths if path]
    assert {name_of(page) for page in PAGES} - {name_of(page) for page in reached} == set()


def test_the_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


RESULTS = [page for page in PAGES if page.parent.name == "results" and page.stem not in ("index", "gpu")]


@pytest.mark.parametrize("page", RESULTS, ids=name_of)
def test_a_page_of_results_says_where_they_come_from(page: Path) -> None:
    text = page.read_text(encoding="utf-8").lower()
    assert [word for word in ("command:", "commit:", "machine:", "duration:", "date:") if word not in text] == []


def test_every_setting_study_and_benchmark_is_on_the_map_of_experiments() -> None:
    folder = ROOT / "experiments"
    page = (folder / "README.md").read_text(encoding="utf-8")
    programs = [file for file in (*folder.glob("*.py"), *folder.glob("benchmarks/*.py")) if is_program(file)]
    missing = [file.name for file in programs if f"`{file.stem}`" not in page]
    for file in folder.glob("*.toml"):
        if f"`{file.name}`" not in page and f"`{file.name.replace('-small', '')}`, `-small`" not in page:
            missing.append(file.name)
    assert missing == []


def is_program(file: Path) -> bool:
    return 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")


def test_the_site_holds_every_page_of_docs() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md"))
