"""What a private run says of itself: nothing that its accountant does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsynth.config import RunConfig
from fedsynth.output import SyntheticDataset, write_dataset
from fedsynth.output.dataset_card import LIMITS, NOT_PRIVATE, limits_of
from fedsynth.privacy import Geometric, Mechanism, epsilon
from fedsynth.privacy.statement import PrivacyStatement, privacy_statement

PRIVATE: dict[str, Any] = {"dp-epsilon": 1.0, "dp-steps": 3, "dp-sampling-rate": 1.0}


def statement_of(**changes: Any) -> PrivacyStatement:
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    found = privacy_statement(RunConfig.from_run_config({**PRIVATE, **given}))
    assert found is not None
    return found


def test_plain_run_states_nothing() -> None:
    assert privacy_statement(RunConfig()) is None
    assert limits_of(()) == LIMITS


def test_epsilon_is_that_of_the_mechanism_and_never_rounded_down() -> None:
    found = statement_of()
    assert found.epsilon == epsilon([found.mechanism], 1e-5)
    said = re.search(r"ε = ([\d.]+) and δ = 1e-05 as to one training image", found.sentences[0])
    assert said is not None
    assert found.epsilon <= float(said[1]) < found.epsilon + 1e-3
    assert found.row() == {
        "privacy-epsilon": found.epsilon,
        "privacy-delta": 1e-5,
        "noise-multiplier": found.mechanism.noise_multiplier,
    }


def test_counts_are_added_to_the_training() -> None:
    found = statement_of(label_count_noise=2.0)
    together = epsilon([found.mechanism, Geometric(2.0)], 1e-5)
    said = re.search(r"scale 2, which costs ε = 0.5 by itself, and ([\d.]+) together", found.sentences[2])
    assert said is not None
    assert together <= float(said[1]) < together + 1e-3
    assert "follows from its seed" in " ".join(found.sentences)


def test_real_silos_have_their_own_policies() -> None:
    found = " ".join(statement_of(dataset="silos").sentences)
    assert "at the scale in each silo's policy" in found
    assert "simulation" not in found


def test_what_is_not_covered_is_said() -> None:
    said = " ".join(statement_of().sentences)
    for words in ("several images of one person", "more than one silo", "other runs", "floating-point", "class names"):
        assert words in said


def test_card_and_provenance_hold_the_statement_in_the_place_of_the_warning(tmp_path: Path) -> None:
    found = statement_of()
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])
    write_dataset(SyntheticDataset(images, labels, ("a", "b"), {"privacy": found.facts()}), tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert NOT_PRIVATE not in card
    assert "training is differentially private with ε = " in card
    assert "Not covered: class names" in card
    kept = json.loads((tmp_path / "set" / "provenance.json").read_text())["provenance"]["privacy"]
    assert kept["privacy-epsilon"] == found.epsilon
    assert kept["neighbours"] == "one training image of a silo more or less"


def test_a_secure_sum_is_stated_towards_the_public_and_towards_the_server() -> None:
    found = statement_of(strategy="dp-sum", num_clients=10, dp_colluders=3)
    public = re.search(r"with ε = ([\d.]+) towards all .* no silo's share of the noise", found.sentences[0])
    server = re.search(r"with ε = ([\d.]+) towards a server that 3 silos may help", found.sentences[0])
    assert public is not None
    assert server is not None
    assert found.epsilon <= float(server[1]) < found.epsilon + 1e-3
    shared = Mechanism(found.mechanism.noise_multiplier * (7 / 4) ** 0.5, 1.0, 3)  # 7 survive, 4 of them are honest
    assert float(public[1]) == pytest.approx(epsilon([shared], 1e-5), abs=1e-3)
    assert found.row() == {
        "privacy-epsilon": found.epsilon,
        "privacy-delta": 1e-5,
        "noise-multiplier": found.mechanism.noise_multiplier,
        "privacy-towards": "a server that 3 silos may help",
        "privacy-epsilon-public": epsilon([shared], 1e-5),
    }
    assert "over at least 7 of 10 silos" in found.sentences[1]
    assert "floating-point numbers, whose rounding" not in " ".join(found.sentences)
    by_nobody = statement_of(strategy="dp-sum", dp_colluders=0)
    assert by_nobody.row()["privacy-towards"] == "a server that no silo helps"
    alone = by_nobody.sentences[0]
    assert "that no silo helps" in alone
    assert "Other silos, which know a share of the noise and see the weights of every round, are not covered" in alone
