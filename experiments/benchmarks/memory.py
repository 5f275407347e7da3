"""What memory a run needs: ``python -m experiments.benchmarks.memory [--quick] [--output FOLDER]`` (Linux only).

Client: resident set of a process that answers 1,000 ``query.epsilon`` messages; it must not grow. Server: peak
resident set of aggregation with ten silos, in copies of what is aggregated, above a process that has imported
everything and aggregated a tiny set. Every measurement has a fresh process. Exits with 1 when a limit is passed.

glibc moves its threshold for giving blocks straight back to the system up to the largest block freed (32 MB at most),
so that a peak holds free memory too; ``MALLOC_MMAP_THRESHOLD_=65536`` in the environment switches that off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from experiments.benchmarks.server_memory import SCENARIOS, ServerPeak, server_peak
from experiments.benchmarks.soak import Soak, client_soak

GROWTH_LIMIT = 1.0
"""kB of resident set a message may add after warm-up; one message here carries 5 kB each way."""

EXTRA_COPIES = 3
"""Copies of the synthetic set, or of the model, that the server may hold beside one for each silo."""

NUM_SILOS = 10


def main() -> int:
    """Measure everything, print it as one table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer messages, smaller sets: shows that it works")
    parser.add_argument("--output", type=Path, help="folder for memory.md and memory.json (default: only print)")
    options = parser.parse_args()
    facts = machine_facts()
    soak = in_fresh_process(client_soak, 200 if options.quick else 1000)
    num_samples = 300 if options.quick else 1000
    peaks = [in_fresh_process(server_peak, name, num_samples, NUM_SILOS) for name in SCENARIOS]
    rows = [_soak_row(soak), *map(_peak_row, peaks)]
    publish("memory", facts, rows, {"client": asdict(soak), "server": list(map(asdict, peaks))}, options.output)
    return int(_broken(soak, peaks))


def _broken(soak: Soak, peaks: Sequence[ServerPeak]) -> bool:
    return soak.growth > GROWTH_LIMIT or any(peak.copies > NUM_SILOS + EXTRA_COPIES for peak in peaks)


def _soak_row(soak: Soak) -> dict[str, str]:
    marks = {int(share * soak.messages[-1]) for share in (0.1, 0.25, 0.5, 1.0)}
    sizes = [f"{r:,.0f} kB after {n}" for n, r in zip(soak.messages, soak.resident, strict=True) if n in marks]
    return _row("client, epsilon queries", f"{soak.growth:+.2f} kB/message", f"<= {GROWTH_LIMIT:g}", ", ".join(sizes))


def _peak_row(peak: ServerPeak) -> dict[str, str]:
    said = f"one copy {peak.copy / 1e6:.1f} MB, baseline {peak.baseline / 1e6:.0f} MB, peak {peak.peak / 1e6:.0f} MB"
    return _row(f"server, {peak.name}", f"{peak.copies:.2f} copies", f"<= {NUM_SILOS + EXTRA_COPIES}", said)


def _row(measure: str, measured: str, limit: str, behind: str) -> dict[str, Any]:
    return {"measure": measure, "measured": measured, "limit": limit, "resident set": behind}


if __name__ == "__main__":
    sys.exit(main())
