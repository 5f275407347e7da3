"""Real silos that aggregate: each goes by its own file of keys, and an auditor by the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_silos import keys_for_sums, real_settings, run_real, write_silos
from tiny_runs import without_pictures

from fedsynth.cli import main
from fedsynth.config import Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.privacy.sums import SecretKeys
from fedsynth.privacy.sums.key_files import read_known, write_known

SILOS = {"east": (0, 1), "north": (0, 1), "south": (0, 1)}


def test_a_run_of_real_silos_is_audited_with_their_key_file_and_another_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silos, keys = write_silos(tmp_path / "images", SILOS), keys_for_sums(tmp_path / "keys", sorted(SILOS))
    path = Path(keys["south"]["known-keys-path"])
    given: dict[str, Scalar] = {"strategy": "fedavg", "aggregators": "silos", "num_clients": 3, "num_rounds": 1}
    given |= {"train_steps": 1, "num_samples": 2, "sampling_steps": 2, "block_out_channels": "4,4"}
    settings = real_settings(tmp_path, key_file=str(path), **given)
    with without_pictures():
        folder = run_real(settings, silos, **keys)
    assert main(["audit", str(folder.path), "--keys", keys["north"]["known-keys-path"]]) == 0
    assert "signed by east, north, south" in capsys.readouterr().out
    # The server has a file in which somebody else is 'north': the census shows it.
    other = {**read_known(path), "north": SecretKeys.generate().public}
    write_known(tmp_path / "other.json", other)
    with pytest.raises(UserError, match=r"not the keys of this run's silos \(north\)"):
        run_real({**settings, "key-file": str(tmp_path / "other.json"), "run-name": "other"}, silos, **keys)
    # 'south' has another file than the server.
    write_known(path, dict(reversed(read_known(path).items())))
    good = {**settings, "key-file": keys["north"]["known-keys-path"], "run-name": "third", "min-replies": 3}
    with pytest.raises(RunError, match=r"the server's key-file is not this silo's silo-keys\.json"):
        run_real(good, silos, **keys)
