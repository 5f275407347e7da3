"""The verdict on a synthetic set: one sentence from what was measured, by fixed rules.

The bounds are conventions, chosen so that a reader who sees nothing but the sentence is not misled; the numbers stand
beside the words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsynth.units import rounded_up

AS_GOOD = 0.95
"""Share of what real images teach from which synthetic ones are "usable for training". Of the way from guessing to the
accuracy of a classifier that learnt from real images: of two classes guessing alone is right half of the time."""
WORTH_SOMETHING = 0.8
"""The same below which they are "not usable": a fifth of what real images teach is lost, and fewer real images would
teach more."""
LEAST_TAUGHT = 0.1
"""By how much real images must lift a classifier above guessing before a share of that means anything."""
FEW_TEST_IMAGES = 200
"""Test images below which the sentence says how few they were: of 200, an accuracy near .9 has an interval of ± .04."""
ALARMING_AUC = 0.6
"""From here on an attack "shows" who was trained on. Of a pair of a member and a non-member it names the right one in
three of five cases; in the mean, so that it is far surer of some."""
ALARMING_TPR = 0.1
"""The same for members found at 1 % false accusations: ten times as many as guessing finds. An attack that is sure of a
few is a breach however bad it is in the mean (Carlini et al. 2022, arXiv 2112.03570)."""
LEAST_FOR_TPR = 100
"""Non-members below which one false accusation is more than 1 %."""
STANDARD_ERRORS = 3.0
"""By how many an area must exceed .5 to be more than noise: it is the largest of several models' areas."""
COPIED_BY_CHANCE, ALARMING_COPIES = 0.05, 0.1
"""Share of fresh real images that count as near-copies, by the definition of a near-copy, and twice that."""
WEAK_EPSILON = 10.0
"""ε above which a guarantee is weak: "reasonable" ends at 10 in Ponomareva et al. 2023 (arXiv 2303.00654, Sec. 5.2)."""


@dataclass(frozen=True)
class Usefulness:
    """How well a classifier learns from the images.

    Attributes:
        accuracy: on real images, trained on synthetic ones, 0 to 1.
        real: the same trained on as many real ones; None: not measured.
        guessing: accuracy of always naming the most frequent class.
        test_images: N of all three.
        where: what these are, such as ``real test images``.
    """

    accuracy: float
    real: float | None
    guessing: float
    test_images: int
    where: str = "real test images"


@dataclass(frozen=True)
class AttackFound:
    """The most successful of the attacks on one kind of target.

    Attributes:
        auc: area under the ROC curve.
        tpr: share of members found at 1 % false accusations.
        members: images that were trained on.
        others: images that were not.
    """

    auc: float
    tpr: float
    members: int
    others: int

    @property
    def noise(self) -> float:
        """How far above .5 an attack that guesses may come."""
        n, m = max(1, self.members), max(1, self.others)
        return STANDARD_ERRORS * math.sqrt((n + m + 1) / (12 * n * m))

    @property
    def shows(self) -> bool:
        """Whether it tells who was trained on."""
        sure_of_some = self.tpr >= ALARMING_TPR and self.others >= LEAST_FOR_TPR
        return sure_of_some or self.auc >= max(ALARMING_AUC, 0.5 + self.noise)

    @property
    def better_than_guessing(self) -> bool:
        """Whether it is more than noise."""
        return self.auc > 0.5 + self.noise


@dataclass(frozen=True)
class Findings:
    """What a verdict is made from; None: not measured.

    Attributes:
        usefulness: of the images for training.
        copied_share: share of near-copies of training images.
        num_synthetic: images of which it is the share.
        images: attack on the released images.
        models: attack on the models of the run.
        epsilon, delta: differential privacy of the training; None: none.
        towards: whom alone ``epsilon`` holds towards, in a few words; empty: all others.
    """

    usefulness: Usefulness | None = None
    copied_share: float | None = None
    num_synthetic: int = 0
    images: AttackFound | None = None
    models: AttackFound | None = None
    epsilon: float | None = None
    delta: float | None = None
    towards: str = ""


def verdict_of(findings: Findings) -> str:
    """Return what to do with images and models, in one sentence."""
    parts = [_of_training(findings.usefulness), *_of_publishing(findings)]
    if findings.epsilon is not None and findings.delta is not None:
        parts.append(_of_guarantee(findings.epsilon, findings.delta, findings.towards))
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def attack_of(row: Mapping[str, Any], prefix: str) -> AttackFound | None:
    """Return the attack whose columns in a row of results begin with ``prefix``; None: not measured."""
    names = ("membership-auc", "membership-tpr-at-1-percent-fpr", "members", "non-members")
    found = [row.get(f"{prefix}{name}") for name in names]
    if any(value is None for value in found):
        return None
    auc, tpr, members, others = found
    return AttackFound(float(auc), float(tpr), int(members), int(others))  # type: ignore[arg-type]


def findings_on_publishing(row: Mapping[str, Any]) -> Findings:
    """Return from a row of results what speaks for and against publishing."""
    attacks = [attack_of(found, "epsilon-") for found in row.get("epsilon-membership", {}).values()]
    models = [attack for attack in [*attacks, attack_of(row, "generator-epsilon-")] if attack is not None]
    return Findings(
        copied_share=row.get("copied-share"),
        num_synthetic=row.get("synthetic-count", 0),
        images=attack_of(row, "released-"),
        models=max(models, key=lambda attack: (attack.shows, attack.auc), default=None),
    )


def why_not_publish(findings: Findings, what: Literal["images", "models"]) -> str:
    """Return the part of the verdict that warns of publishing images or models; empty if it does not."""
    return next((part for part in _of_publishing(findings) if part.startswith(f"do not publish the {what}")), "")


def _of_training(found: Usefulness | None) -> str:
    if found is None:
        return "how well classifiers learn from the images was not measured"
    if found.real is None:
        return (
            f"classifiers that learn from the images are right on {_percent(found.accuracy)} of"
            f" {_number(found)}{found.where}; what real images would teach was not measured"
        )
    taught = found.real - found.guessing
    against = f"{_percent(found.accuracy)} against {_percent(found.real)} with real images"
    if taught < LEAST_TAUGHT:
        return (
            f"whether the images are usable for training cannot be told ({against}): always naming the most frequent"
            f" class is right on {_percent(found.guessing)}"
        )
    share = (found.accuracy - found.guessing) / taught
    said = "usable for training" if share >= AS_GOOD else "usable for training with losses"
    few = f", on {found.test_images} test images only" if found.test_images < FEW_TEST_IMAGES else ""
    return f"{said if share >= WORTH_SOMETHING else 'not usable for training'}: {against}{few}"


def _number(found: Usefulness) -> str:
    return f"{found.test_images} " if found.test_images < FEW_TEST_IMAGES else ""


def _of_publishing(findings: Findings) -> list[str]:
    images, models = findings.images, findings.models
    looked_for_copies = findings.copied_share is not None and findings.num_synthetic > 0
    if not looked_for_copies and images is None and models is None:
        return ["whether images or models show who was trained on was not measured"]
    copied = looked_for_copies and _many_copies(findings.copied_share or 0.0, findings.num_synthetic)
    parts = []
    if images is not None and images.shows:
        parts.append(f"do not publish the images: who was trained on shows with {_strength(images)}")
    elif copied:
        parts.append(
            f"do not publish the images unchecked: {_percent(findings.copied_share or 0.0)} of them lie nearer to a"
            " training image than 95 % of fresh real images do"
        )
    elif images is not None and images.better_than_guessing:
        parts.append(_little("images", images))
    elif looked_for_copies:
        parts.append("no sign that the images repeat training images")
    if models is None:
        return [*parts, "whether the models show who was trained on was not measured"]
    if models.shows:
        return [*parts, f"do not publish the models: who was trained on shows with {_strength(models)}"]
    if models.better_than_guessing:
        return [*parts, _little("models", models)]
    return [*parts, f"an attack on the models did no better than guessing ({_strength(models)})"]


def _little(what: str, attack: AttackFound) -> str:
    return f"think before you publish the {what}: they show a little of who was trained on ({_strength(attack)})"


def _many_copies(share: float, n: int) -> bool:
    spread = math.sqrt(COPIED_BY_CHANCE * (1 - COPIED_BY_CHANCE) / n)
    return share >= max(ALARMING_COPIES, COPIED_BY_CHANCE + STANDARD_ERRORS * spread)


def _of_guarantee(epsilon: float, delta: float, towards: str) -> str:
    weak = ", a weak guarantee" if epsilon > WEAK_EPSILON else ""
    whom = f" towards {towards}" if towards else ""
    return f"training was differentially private with ε = {rounded_up(epsilon)}, δ = {delta:g}{whom}{weak}"


def _strength(attack: AttackFound) -> str:
    if attack.tpr >= ALARMING_TPR and attack.auc < ALARMING_AUC and attack.others >= LEAST_FOR_TPR:
        return f"{_percent(attack.tpr)} of them found at 1 % false accusations"
    return f"AUC {_point(attack.auc)}"


def _point(value: float) -> str:
    """Return a number of 0 to 1 with two digits: ``.96``."""
    return f"{value:.2f}".removeprefix("0")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
