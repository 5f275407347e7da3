"""What memory a run needs: ``python -m experiments.benchmarks.memory [--quick] [--output FOLDER]`` (Linux only).

Client: resident set of a process that answers 1,000 ``query.epsilon`` messages; it must not grow. Server: peak
resident set of aggregation with ten silos, in copies of what is aggregated, above a process that has imported
everything and aggregated a tiny set. Every measurement has a fresh process. Exits with 1 when a limit is passed.

The server's peak is measured twice: with freed blocks given back at once (``held``; the limit is on this one), and as
glibc does by default (``resident``): it keeps freed blocks up to the largest it has seen, 32 MB at most, for later.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from experiments.benchmarks.common import in_fresh_process, machine_facts, publish
from experiments.benchmarks.server_memory import SCENARIOS, ServerPeak, server_peak
from experiments.benchmarks.soak import Soak, client_soak, server_soak

GROWTH_LIMIT = 1.0
"""kB of resident set that a message may add after warm-up; one message here carries 5 kB each way."""

ROUND_GROWTH_LIMIT = 10.0
"""kB of resident set that a round may add after warm-up; the set has 1,200 kB here, as has the answer of each silo."""

EXTRA_COPIES = 5
"""Copies of the synthetic set, or of the model, that the server may hold beside one for each silo: the set before the
round and after it, what a solver remembers, and the answer that is being read, whole and in its pieces."""

NUM_SILOS = 10

UNLIMITED = ("dfd, all answers at once",)
"""Measured without a limit: answers that lie ready together are fetched together, which no strategy can help."""


def main() -> int:
    """Measure everything, print it as one table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer messages, smaller sets: shows that it works")
    parser.add_argument("--output", type=Path, help="folder for memory.md and memory.json (default: only print)")
    options = parser.parse_args()
    facts = machine_facts()
    soak = in_fresh_process(client_soak, 200 if options.quick else 1000)
    rounds = in_fresh_process(server_soak, 200 if options.quick else 1000)
    num_samples = 300 if options.quick else 1000
    held, resident = (_peaks(num_samples, return_freed) for return_freed in (True, False))
    rows = [
        _soak_row("client, epsilon queries", soak, "message", GROWTH_LIMIT),
        _soak_row("server, cooperative rounds", rounds, "round", ROUND_GROWTH_LIMIT),
        *map(_peak_row, held, resident),
    ]
    details = {
        "client": asdict(soak),
        "rounds": asdict(rounds),
        "server": [list(map(asdict, peaks)) for peaks in (held, resident)],
    }
    publish("memory", facts, rows, details, options.output)
    grew = soak.growth > GROWTH_LIMIT or rounds.growth > ROUND_GROWTH_LIMIT
    return int(grew or any(map(_too_much, held)))


def _peaks(num_samples: int, return_freed: bool) -> list[ServerPeak]:
    return [in_fresh_process(server_peak, name, num_samples, NUM_SILOS, return_freed) for name in SCENARIOS]


def _too_much(peak: ServerPeak) -> bool:
    return peak.name not in UNLIMITED and peak.copies > NUM_SILOS + EXTRA_COPIES


def _soak_row(name: str, soak: Soak, unit: str, limit: float) -> dict[str, str]:
    marks = {int(share * soak.counts[-1]) for share in (0.1, 0.25, 0.5, 1.0)}
    sizes = [f"{r:,.0f} kB after {n}" for n, r in zip(soak.counts, soak.resident, strict=True) if n in marks]
    return _row(name, f"{soak.growth:+.2f} kB/{unit}", f"<= {limit:g}", ", ".join(sizes))


def _peak_row(held: ServerPeak, resident: ServerPeak) -> dict[str, str]:
    measured = f"{held.copies:.2f} copies held, {resident.copies:.2f} resident"
    peaks = f"peak {held.peak / 1e6:.0f} MB, {resident.peak / 1e6:.0f} MB"
    text = f"one copy {held.copy / 1e6:.1f} MB, baseline {held.baseline / 1e6:.0f} MB, {peaks}"
    limit = "none" if held.name in UNLIMITED else f"<= {NUM_SILOS + EXTRA_COPIES}"
    return _row(f"server, {held.name}", measured, limit, text)


def _row(measure: str, measured: str, limit: str, behind: str) -> dict[str, str]:
    return {"measure": measure, "measured": measured, "limit": limit, "resident set": behind}


if __name__ == "__main__":
    sys.exit(main())
