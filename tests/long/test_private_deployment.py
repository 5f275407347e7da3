"""One private model of three real silos over TLS, through the commands of the documentation, to a dataset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from deployed import classes_of, deployed

SILOS = {"east": (0, 1), "north": (0, 1), "south": (0, 1)}
STEPS = 3


def test_three_silos_train_one_model_by_secure_sums_of_gradients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy: dict[str, Any] = {"answers": ("describe", "prepare", "gradient"), "least_colluders": 1, "count_noise": 1.0}
    with deployed(tmp_path, SILOS, **policy) as link:
        private = {"dp_epsilon": 8.0, "dp_steps": STEPS, "dp_sampling_rate": 1.0, "dp_multiplicity": 1}
        run = link.run("sums", strategy="dp-sum", **private)
        assert classes_of(run) == {"0": 30, "1": 30}
        assert [row["silos"] for row in run.read_metrics()] == [3] * STEPS
        card = (run.synthetic / "README.md").read_text()
        public, server = (float(value) for value in re.findall(r"with ε = ([\d.]+) towards", card)[:2])
        assert public < server <= 8.01
        for name in SILOS:
            log = link.log(name)
            assert f"{name}: query.gradient, round {STEPS}" in log
            assert "query.reveal" in log
            assert "query.train" not in log
            capsys.readouterr()
            link.command("silo", "privacy", "--folder", f"silo-{name}")
            spent = re.search(r"ε +([\d.]+) at δ", capsys.readouterr().out)
            assert spent is not None
            assert server < float(spent[1]), "with the noisy counts"
