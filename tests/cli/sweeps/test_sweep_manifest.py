from __future__ import annotations

from pathlib import Path

import pytest
from damage import cut, flipped

from fedsynth.cli.sweeps.sweep_file import Sweep, read_sweep
from fedsynth.cli.sweeps.sweep_manifest import MANIFEST, Entry, plan, read_manifest, write_manifest
from fedsynth.errors import UserError


@pytest.fixture
def sweep(project: Path) -> Sweep:
    (project / "s.toml").write_text('seeds = [0, 1]\n[[method]]\nname = "averaging"\nstrategy = "fedavg"\n')
    return read_sweep(Path("s.toml"), {})


def test_damaged_list_is_named_and_written_anew(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    entries = plan(sweep)
    write_manifest(sweep, entries)
    path = sweep.folder / MANIFEST
    content = path.read_bytes()
    damaged = 0
    for changed in (*flipped(content, 60), *cut(content, 5)):
        path.write_bytes(changed)
        found: list[Entry] = entries
        try:
            found = read_manifest(sweep.folder)
        except UserError as error:
            damaged += 1
            assert f"{MANIFEST}' is damaged: start 'fedsynth sweep' again to have it rewritten" in str(error)  # noqa: PT017 (either is right)
        assert found == entries
        assert plan(sweep) == entries
    assert damaged > 40
    assert caplog.text.count("it is rewritten") == damaged
    write_manifest(sweep, plan(sweep))
    assert path.read_bytes() == content
