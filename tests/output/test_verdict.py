from __future__ import annotations

from dataclasses import replace

import pytest

from fedsynth.output import Findings, Usefulness, attack_of, verdict_of
from fedsynth.output.verdict import AttackFound

GOOD = Usefulness(0.950, 0.969, 0.1, 360)
GUESSED = AttackFound(0.51, 0.01, 300, 300)
SURE = AttackFound(0.96, 0.4, 300, 300)
ALL_FINE = Findings(GOOD, 0.05, 1000, GUESSED, GUESSED)


def test_one_sentence_says_what_to_do_with_images_and_models() -> None:
    assert verdict_of(replace(ALL_FINE, models=SURE)) == (
        "Usable for training: 95.0 % against 96.9 % with real images; no sign that the images repeat training images;"
        " do not publish the models: who was trained on shows with AUC .96."
    )
    assert verdict_of(ALL_FINE).endswith("; an attack on the models did no better than guessing (AUC .51).")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        # Of two classes, .76 against .80 is 26 of 30 points above guessing and no 95 %.
        (Usefulness(0.76, 0.80, 0.5, 5000), "Usable for training with losses: 76.0 % against 80.0 % with real"),
        (Usefulness(0.786, 0.80, 0.5, 5000), "Usable for training: 78.6 %"),
        (Usefulness(0.70, 0.80, 0.5, 5000), "Not usable for training: 70.0 %"),
        (Usefulness(0.46, 0.64, 0.56, 50), "Whether the images are usable for training cannot be told (46.0 % against"),
        (Usefulness(0.8, 0.8, 0.1, 199), "Usable for training: 80.0 % against 80.0 % with real images, on 199 test"),
        (
            Usefulness(0.9, None, 0.5, 300, "held-out images"),
            "Classifiers that learn from the images are right on 90.0",
        ),
        (None, "How well classifiers learn from the images was not measured;"),
    ],
)
def test_training_is_judged_above_guessing(found: Usefulness | None, said: str) -> None:
    assert verdict_of(replace(ALL_FINE, usefulness=found)).startswith(said)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (AttackFound(0.62, 0.01, 300, 300), "do not publish the models: who was trained on shows with AUC .62."),
        # As large by chance: three standard errors are .31 of 16 and 16 images.
        (AttackFound(0.75, 0.2, 16, 16), "an attack on the models did no better than guessing (AUC .75)."),
        (AttackFound(0.85, 0.2, 16, 16), "do not publish the models: who was trained on shows with AUC .85."),
        (AttackFound(0.55, 0.01, 2000, 2000), "they show a little of who was trained on (AUC .55)."),
        (AttackFound(0.55, 0.15, 2000, 2000), "shows with 15.0 % of them found at 1 % false accusations."),
        (None, "whether the models show who was trained on was not measured."),
    ],
)
def test_an_attack_counts_beyond_its_noise(attack: AttackFound | None, said: str) -> None:
    assert verdict_of(replace(ALL_FINE, models=attack)).endswith(said)


def test_copies_and_shown_members_keep_images_back() -> None:
    assert "do not publish the images unchecked: 12.0 % of them" in verdict_of(replace(ALL_FINE, copied_share=0.12))
    assert "no sign" in verdict_of(replace(ALL_FINE, copied_share=0.12, num_synthetic=50)), "by chance, of 50 images"
    assert "do not publish the images: who was trained on shows with AUC .96" in verdict_of(
        replace(ALL_FINE, images=SURE)
    )


def test_what_was_not_measured_is_said_and_a_guarantee_is_rounded_up() -> None:
    assert verdict_of(Findings()) == (
        "How well classifiers learn from the images was not measured; whether images or models show who was trained on"
        " was not measured."
    )
    private = Findings(GOOD, epsilon=7.9996, delta=1e-5)
    assert verdict_of(private).endswith("; training was differentially private with ε = 8, δ = 1e-05.")
    assert "δ = 1e-05 towards a server." in verdict_of(replace(private, towards="a server"))
    assert "ε = 20, δ = 1e-05, a weak guarantee" in verdict_of(replace(private, epsilon=20.0))


def test_an_attack_is_read_from_results() -> None:
    row = {"x-membership-auc": 0.6, "x-membership-tpr-at-1-percent-fpr": 0.02, "x-members": 9, "x-non-members": 8}
    assert attack_of(row, "x-") == AttackFound(0.6, 0.02, 9, 8)
    assert attack_of({**row, "x-membership-auc": None}, "x-") is None


def test_images_that_show_a_little_are_not_called_free_of_signs() -> None:
    found = verdict_of(replace(ALL_FINE, images=AttackFound(0.576, 0.028, 360, 360)))
    assert "think before you publish the images: they show a little of who was trained on (AUC .58)" in found
    assert "no sign" not in found
    assert "no sign" in verdict_of(replace(ALL_FINE, images=AttackFound(0.55, 0.028, 360, 360)))
