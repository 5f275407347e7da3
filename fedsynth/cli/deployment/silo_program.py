"""``silo program``: by which number a silo knows this version's program, to pin it in its policy."""

from __future__ import annotations

from pathlib import Path

from fedsynth.cli.deployment.app import program_digest, program_version
from fedsynth.policy import POLICY_FILE, SiloPolicy, read_policy


def show_program(folder: Path) -> int:
    """Print the hash of the installed version, and what the silo's policy makes of it.

    Returns:
        1 if the policy pins other programs only; otherwise 0.

    Raises:
        UserError: the installation is not whole, or the policy cannot be read.
    """
    path, digest = folder / POLICY_FILE, program_digest()
    pinned = read_policy(path).programs if path.exists() else ()
    print(f"program SHA-256 {digest}\n  of {program_version()}")
    if digest in pinned:
        print(f"policy {path} pins it")
        return 0
    print(
        "compare it with what 'fedsynth run --superlink ... --dry-run' prints at the operator's, by telephone; where"
        f" both\nare the same, write this line into {path} and start with --warm:\n"
        f"  {SiloPolicy(programs=(digest,)).line('programs')}"
    )
    if pinned:
        print(f"policy {path} pins {len(pinned)} other: this program is refused")
    return int(bool(pinned))
