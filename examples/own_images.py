"""Images of your own: three simulated institutions share them out and make one synthetic set of the same classes.

    python examples/own_images.py FOLDER

FOLDER holds one folder a class, or ``train/`` and ``test/`` with these in them. Nothing leaves this machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fedsynth
from fedsynth.errors import UserError


def main(folder: Path, **changes: Any) -> fedsynth.Run:
    """Make a set from the images in ``folder``, and say how good it is; ``changes`` are further settings."""
    settings = {
        "dataset": "imagefolder",
        "data_root": folder,
        "image_size": 32,
        "num_clients": 3,
        # Uneven: a smaller alpha gives each institution fewer of the classes.
        "partition": "dirichlet",
        "alpha": 0.5,
        "num_samples": 500,
    }
    run = fedsynth.synthesise(**{**settings, **changes})

    made = run.dataset
    counts = dict(zip(made.classes, made.counts().tolist(), strict=True))
    print(f"{len(made.images)} images of {made.images.shape[1:]}, per class {counts}")
    for name in ("accuracy-cnn", "real-accuracy-cnn", "coverage", "copied-share"):
        print(f"{name:20} {run.results.get(name, 'not measured')}")
    print(f"images {run.folder.synthetic}\nreport {run.report}")
    return run


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/own_images.py FOLDER")
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
