from __future__ import annotations

from pathlib import Path

from PIL import Image

from fedsynth.config import RunConfig
from fedsynth.data import load_federation


def test_a_run_can_say_what_was_done_to_its_images_and_who_holds_them(tmp_path: Path) -> None:
    digits = RunConfig.from_run_config({"alpha": 0.5, "num-clients": 4, "samples-per-client": 50})
    federation = load_federation(digits)
    images = "digits: 1,437 images for the silos and 360 for testing, 10 classes, 8 x 8 pixels, grey"
    assert federation.describe_images(digits) == images
    sizes = sorted(map(len, federation.parts))
    assert federation.describe_split(digits) == (
        f"dirichlet (alpha = 0.5, samples-per-client = 50), 4 silos of {sizes[0]} to {sizes[-1]} images; 10 % of each"
        " silo's are held out from its training"
    )
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(10):
            size = (20, 10) if number < 3 else (8, 8)
            Image.new("RGB", size, (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    given = {"dataset": "imagefolder", "data-root": str(tmp_path), "image-size": 8, "partition": "iid"}
    folders = RunConfig.from_run_config({**given, "num-clients": 2, "holdout-fraction": 0.0})
    federation = load_federation(folders)
    assert federation.describe_images(folders) == (
        "imagefolder: 16 images for the silos and 4 for testing, 2 classes, 8 x 8 pixels, RGB; 6 of 20 images from"
        " 20 x 10 to 8 x 8 pixels (cropped to their centre square where they are none, then resized)"
    )
    assert federation.describe_split(folders) == "iid, 2 silos of 8 images"
