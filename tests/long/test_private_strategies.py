"""Whole private runs of the strategies whose silos train models of their own; dfd is among the short tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from one_silo import policy_file
from private_runs import check_own_models
from real_silos import keys_for_sums, real_settings, run_real, write_silos
from tiny_runs import images_of

from fedsynth.config import Scalar


@pytest.mark.parametrize("strategy", ["pooled", "local", "fedddpm"])
def test_private_run_makes_a_dataset_and_states_its_guarantee(strategy: str, tmp_path: Path) -> None:
    check_own_models(strategy, tmp_path)


def test_real_silos_train_one_model_privately_and_show_the_mean_of_their_updates_alone(tmp_path: Path) -> None:
    names = ("east", "north", "south")
    given = keys_for_sums(tmp_path / "keys", names)
    sums_alone = policy_file(tmp_path / "policy", answers=("describe", "prepare", "masked-train"), count_noise=1.0)
    for config in given.values():
        config["policy-path"] = sums_alone
    private: dict[str, Scalar] = {"dp_epsilon": 8.0, "dp_steps": 2, "dp_multiplicity": 1, "dp_sampling_rate": 0.5}
    settings = real_settings(
        tmp_path, strategy="fedavg", num_rounds=1, num_samples=6, secure_aggregation=True, **private
    )
    folder = run_real(settings, write_silos(tmp_path / "images", dict.fromkeys(names, (0, 1))), **given)
    assert len(images_of(folder)) == 6
    card = (folder.synthetic / "README.md").read_text()
    assert "sums of the silos' updates and no single one" in card
    assert "training is differentially private with ε = " in card
    (audit,) = (tmp_path / "state" / "silos" / "north").glob("audit.jsonl")
    asked = {json.loads(line)["message"] for line in audit.read_text().splitlines()}
    assert asked == {"query.describe", "query.prepare", "query.masked_train", "query.reveal"}
    account = (tmp_path / "state" / "silos" / "north" / "privacy.jsonl").read_text()
    assert "training" in account
