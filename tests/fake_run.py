"""What stands in for ``fedsynth run`` in tests of sweeps: a process that leaves a run folder, in an instant.

Its results follow from strategy and seed. In the folder above the sweep's it finds its orders: ``fail-<run name>`` has
it end with an error, ``hold-<run name>`` keeps it in its first round; every start is noted there in ``starts``.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LEVEL = {"dfd": 4.0, "fedavg": 9.0, "pooled": 4.5, "krum": 20.0}


def value_of(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(words):
    if words[0] == "--resume":
        folder = Path(words[1])
        config = json.loads((folder / "config.json").read_text())["config"]
    else:
        config = {key[2:]: value_of(text) for key, _, text in (word.partition("=") for word in words)}
        folder = Path(config["output-dir"]) / config["run-name"]
    orders = folder.parents[1]
    with (orders / "starts").open("a") as starts:
        starts.write(f"{words[0] if words[0] == '--resume' else 'fresh'} {folder.name}\n")
    folder.mkdir(parents=True, exist_ok=True)
    if (orders / f"fail-{folder.name}").exists():
        sys.exit(f"fedsynth 10:20:30 round 1/2 (50 %), 1 s left\nerror: no silo answered in {folder.name}")
    # Without a recipe it would be a run of an earlier version.
    (folder / "config.json").write_text(json.dumps({"config": {"recipe": "auto", **config}, "resolved": []}))
    print("fedsynth 10:20:30 round 1/2 (50 %), loss 0.5, 1 s left", flush=True)
    if (orders / f"hold-{folder.name}").exists():
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        (orders / "held").write_text(str(os.getpid()))
        time.sleep(600)
    strategy, seed = config.get("strategy", "dfd"), config.get("seed", 0)
    results = {
        "strategy": strategy,
        "rounds": 2,
        "bytes-up": 1000,
        "bytes-down": 2000,
        "client-seconds": 3.0,
        "wall-seconds": 100.0,
        "n": 360,
        "feature-space": "domain-classifier",
        "n-train": 300,
        "frechet-distance": LEVEL[strategy] + seed / 10,
        "accuracy-cnn": 0.9 + seed / 100,
    }
    (folder / "results.json").write_text(json.dumps(results))


main(sys.argv[1:])
