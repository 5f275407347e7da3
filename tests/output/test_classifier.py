from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsynth.evaluation import DomainClassifier, predict_labels
from fedsynth.output import write_classifier
from fedsynth.spec import ImageSpec


def test_the_five_lines_of_the_card_load_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = DomainClassifier(3, 8, 2).eval()
    spec = ImageSpec(3, 8, ("<b>cat</b>", "dog"))
    provenance = {"method": "ddsa", "silos": ["silo-0"], "seed": 0, "settings": {}, "caveats": ["no images of class x"]}
    write_classifier(
        tmp_path / "classifier", model.state_dict(), spec, provenance, {"classifier-accuracy-synthetic": 0.52}
    )
    card = (tmp_path / "classifier" / "README.md").read_text()
    assert "It knows .52 of the run's real test images." in card or "0.52" in card
    assert "<b>" not in card
    assert "no images of class x" in card
    lines = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)[0]
    assert len(lines.splitlines()) == 5
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    monkeypatch.chdir(tmp_path / "classifier")
    names = {"images": images}
    exec(lines, names)
    assert names["labels"].tolist() == predict_labels(model, images).tolist()
