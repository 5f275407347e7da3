"""Ask every machine of a Ray cluster what a run needs there; a process of its own, since Ray stays in one that knew it.

``RAY_ADDRESS`` says which cluster; the arguments are the paths that its machines must see. The last line is JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

LIMIT_SECONDS = 120.0
"""Seconds for a machine to start a process and look."""


def look(paths: Sequence[str]) -> dict[str, Any]:
    """Say what one machine has; it runs there, where this file may be missing."""
    import os

    try:
        from fedsynth import __version__ as version
    except ImportError as error:
        return {"problem": f"it cannot import fedsynth ({error})"}
    missing = [path for path in paths if not os.path.exists(path)]
    return {"version": version, "missing": missing}


def main(paths: Sequence[str]) -> None:
    """Print the machines and what each has."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found_here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # as Flower has it
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": found_here})
    task = ray.remote(num_cpus=0)(look)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [task.options(scheduling_strategy=place).remote(paths) for place in pinned]
    said = []
    for node, answer in zip(nodes, answers, strict=True):
        try:
            found = ray.get(answer, timeout=LIMIT_SECONDS)
        except ray.exceptions.RayError as error:
            found = {"problem": str(error).strip().splitlines()[-1]}
        resources = node["Resources"]
        amounts = {"cpus": resources.get("CPU", 0.0), "gpus": resources.get("GPU", 0.0)}
        said.append({"address": node["NodeManagerAddress"], **amounts, **found})
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
