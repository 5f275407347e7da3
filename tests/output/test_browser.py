"""The report in a real browser: every picture is really drawn and nothing is complained about."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedsynth.data import load_dataset
from fedsynth.output import Embedding, NearestImages, ReportContent, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SOURCE = re.compile(r'src="data:image/png;base64,([^"]*)"')
SIZE = (1000, 5000)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH")


@dataclass(frozen=True, eq=False)
class Visit:
    """What the browser left: exit code, document, console lines, screen as uint8 (H, W, 3)."""

    code: int
    dom: str
    console: list[str]
    screen: NDArray[np.uint8]


def opened(page: str, folder: Path) -> Visit:
    folder.mkdir()
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}"]
    command += ["--dump-dom", f"--screenshot={folder / 'screen.png'}", (folder / "page.html").as_uri()]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", start_new_session=True)
    try:
        dom, log = process.communicate(timeout=60)
    finally:
        kill_group(process)
    console = [line for line in log.splitlines() if ":CONSOLE" in line]
    return Visit(process.returncode, dom, console, np.asarray(Image.open(folder / "screen.png").convert("RGB")))


def kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB") for source in SOURCE.findall(page)]


def marker(number: int) -> tuple[int, int, int]:
    """Return a colour of which the page has nothing else."""
    return (255, 0, 200 - number)


def marked(page: str) -> str:
    """Replace every picture by a plain one of the same size."""

    def plain(match: re.Match[str]) -> str:
        buffer = io.BytesIO()
        Image.new("RGB", next(sizes), marker(next(numbers))).save(buffer, format="PNG")
        return f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"'

    sizes, numbers = iter([picture.size for picture in pictures(page)]), iter(range(100))
    return SOURCE.sub(plain, page)


def places(screen: NDArray[np.uint8], count: int) -> list[tuple[slice, slice]]:
    """Find where the plain pictures of :func:`marked` are on the screen."""
    found = []
    for number in range(count):
        rows, columns = np.nonzero((screen == marker(number)).all(axis=2))
        assert len(rows) > 0, f"picture {number} is not on the screen"
        found.append((slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)))
    return found


def error(screen: NDArray[np.uint8], place: tuple[slice, slice], picture: Image.Image) -> float:
    """Return how far, on average, the screen is from the picture shrunk to its place, in shares of its own contrast."""
    seen = screen[place].astype(np.float64)
    wanted = np.asarray(picture.resize((seen.shape[1], seen.shape[0]), Image.Resampling.BOX), dtype=np.float64)
    return float(np.abs(seen - wanted).mean() / np.abs(wanted - np.median(wanted, axis=(0, 1))).mean())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of noisy digits with every picture there is."""
    rng, (train, test) = np.random.default_rng(0), load_dataset("digits")
    noise = rng.normal(0, 45, train.images.shape)
    noisy = np.clip(train.images + noise, 0, 255).astype(np.uint8)
    content = ReportContent(
        title="Noisy digits",
        explanation="Digits, and the same digits with noise in the place of synthetic images.",
        classes=train.classes,
        synthetic_images=noisy,
        synthetic_labels=train.labels,
        headline={"images": len(noisy)},
        results={"recall": {"synthetic": 0.5, "N": 360}},
        real_images=test.images,
        real_labels=test.labels,
        silo_names=("north", "south"),
        label_counts=rng.integers(0, 60, (2, 10)),
        losses={"north": [(1, 1.0), (2, 0.5)]},
        rounds=[{"round": 1, "loss": 2.0}, {"round": 2, "loss": 1.0}],
        round_keys=["loss"],
        per_class={"recall": {name: 0.5 for name in train.classes[1:]}},
        nearest=NearestImages(
            noisy[:16], train.images[:16], train.images[16:32], np.ones(16), np.full(16, 2.0), "pixels", 8, 0.5
        ),
        embedding=Embedding(rng.normal(size=(200, 2)), train.labels[:200], np.arange(200) < 100, "pixels"),
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, content)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def layout(page: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[slice, slice]]:
    screen = opened(marked(page), tmp_path_factory.mktemp("layout") / "visit").screen
    return places(screen, len(pictures(page)))


def test_every_picture_is_drawn_and_the_console_is_silent(
    page: str, layout: list[tuple[slice, slice]], tmp_path: Path
) -> None:
    visit = opened(page, tmp_path / "visit")
    assert visit.code == 0
    assert visit.console == []
    assert visit.dom.count("<img") == len(layout) == 7
    assert re.findall(r'<h2 id="(\w+)"', visit.dom)[-1] == "limits"
    assert max(error(visit.screen, *pair) for pair in zip(layout, pictures(page), strict=True)) < 0.1
    assert (visit.screen[-20:] == 255).all(), "the page does not end on the screen: raise SIZE"


def broken(source: str) -> str:
    return "AAAA" + source[4:]


def cut_off(source: str) -> str:
    return source[: len(source) // 8 * 4]


def test_damaged_pictures_are_noticed(page: str, layout: list[tuple[slice, slice]], tmp_path: Path) -> None:
    *_, first, last = SOURCE.findall(page)
    visit = opened(page.replace(first, broken(first)).replace(last, cut_off(last)), tmp_path / "visit")
    errors = [error(visit.screen, *pair) for pair in zip(layout, pictures(page), strict=True)]
    assert max(errors[:-2]) < 0.1
    assert min(errors[-2:]) > 0.3


def test_a_script_is_blocked_and_noticed(page: str, tmp_path: Path) -> None:
    script = "<script>document.body.innerHTML = 'gone'</script>"
    visit = opened(page.replace("</body>", f"{script}</body>"), tmp_path / "visit")
    assert "Noisy digits</h1>" in visit.dom
    assert any("Content Security Policy" in line for line in visit.console)
