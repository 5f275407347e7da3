"""The report in a real browser, which complains about nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedsynth.data import load_dataset
from fedsynth.output import Embedding, NearestImages, ReportContent, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH")


@dataclass(frozen=True, eq=False)
class Visit:
    """What the browser left: exit code, document and console lines."""

    code: int
    dom: str
    console: list[str]


def opened(page: str, folder: Path, *flags: str) -> Visit:
    folder.mkdir(exist_ok=True)
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += flags
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", (folder / "page.html").as_uri()]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", start_new_session=True)
    try:
        dom, log = process.communicate(timeout=60)
    finally:
        kill_group(process)
    console = [line for line in log.splitlines() if ":CONSOLE" in line]
    return Visit(process.returncode, dom, console)


def kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


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
        verdict="Usable for training with losses; " + "long " * 30,
        results={
            f"a-measure-with-a-long-name-{n}": {f"column {k}": k / 7 for k in range(9)} | {"in": "x" * 40}
            for n in range(2)
        },
        silos=[{"silo": "s" * 60, **{f"a wide column {k}": 1e-7 * k for k in range(8)}}],
        command="fedsynth run " + "--key=value " * 40 + "-" * 200,
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


def test_the_page_has_its_pictures_and_the_console_is_silent(page: str, tmp_path: Path) -> None:
    visit = opened(page, tmp_path / "visit")
    assert visit.code == 0
    assert visit.console == []
    assert visit.dom.count("<img") == 7
    assert re.findall(r'<h2 id="(\w+)"', visit.dom)[-1] == "settings"


WRAPPER = """<body onload="out.textContent = [...frames].map(hidden).join(', ')"><p id="out"></p>
<iframe src="report.html" width="420" height="900"></iframe>
<iframe src="report.html" width="1400" height="900"></iframe>
<script>
  const out = document.getElementById("out"), frames = document.querySelectorAll("iframe");
  function hidden(frame) {  // pixels that lie outside of the page, and of the box of its widest table
    const page = frame.contentDocument, boxes = [page.documentElement, ...page.querySelectorAll(".scroll")];
    return boxes.map(box => box.scrollWidth - box.clientWidth).join(" ");
  }
</script></body>"""


def test_no_page_has_to_be_scrolled_sideways(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "visit"
    folder.mkdir()
    (folder / "report.html").write_text(page, encoding="utf-8")
    visit = opened(WRAPPER, folder, "--allow-file-access-from-files")
    assert re.findall(r'<p id="out">(.*)</p>', visit.dom) == ["0 0 0, 0 0 0"]


def test_a_script_is_blocked_and_noticed(page: str, tmp_path: Path) -> None:
    script = "<script>document.body.innerHTML = 'gone'</script>"
    visit = opened(page.replace("</body>", f"{script}</body>"), tmp_path / "visit")
    assert "Noisy digits</h1>" in visit.dom
    assert any("Content Security Policy" in line for line in visit.console)
