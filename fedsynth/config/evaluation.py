"""Keys of the measurements at the end of a run."""

from __future__ import annotations

from typing import get_args

from pydantic import model_validator

from fedsynth.config.keys import Section, key
from fedsynth.config.types import AUTO, REAL_SILOS, Auto, ClassifierName, FeatureExtractorName, Positive

_EVALUATE = ("evaluate",)


class Evaluation(Section):
    """Measurements at the end of a run."""

    evaluate: bool = key(True, "measure the synthetic set against real images", affects="measures")
    feature_extractor: FeatureExtractorName | Auto = key(
        AUTO,
        "auto: Inception if its weights are on disk, else efficientnet-lite0 (installed, 32 pixels or more), else"
        " domain-classifier",
        may_change=True,
        commands=_EVALUATE,
    )
    feature_extractor_weights_path: str = key(
        "",
        "file of its weights; empty: torch hub's, or download",
        path=True,
        affects="execution",
        commands=_EVALUATE,
    )
    classifiers: str = key(
        "logistic-regression,mlp,cnn",
        "trained on the synthetic images; also: resnet",
        may_change=True,
        commands=_EVALUATE,
    )
    classifier_seeds: Positive = key(
        3, "trainings of each classifier, for means with intervals", may_change=True, commands=_EVALUATE
    )
    resnet_weights_path: str = key(
        "",
        "file that resnet starts from; empty: torch hub's, or none",
        path=True,
        may_change=True,
        commands=_EVALUATE,
    )
    reference_root: str = key(
        "",
        "real images of the operator's own to measure against",
        path=True,
        may_change=True,
        acts_with={"dataset": (REAL_SILOS,)},
    )
    membership_inference: bool = key(True, "attack the models of a simulation: who was trained on?", affects="measures")
    evaluate_silos: bool = key(
        False, "have the silos measure the synthetic set against their own images", affects="measures"
    )

    @model_validator(mode="after")
    def _classifiers_are_known(self) -> Evaluation:
        self.classifier_names()
        return self

    def classifier_names(self) -> tuple[str, ...]:
        """``classifiers`` one by one."""
        names, known = tuple(word.strip() for word in self.classifiers.split(",")), get_args(ClassifierName)
        for name in names:
            if name not in known:
                raise ValueError(f"classifiers = '{self.classifiers}': '{name}' is none of {', '.join(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"classifiers = '{self.classifiers}': name each once")
        return names
