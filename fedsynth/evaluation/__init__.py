"""How good a synthetic dataset is: fidelity, coverage, utility and signs of copying, against real images."""

from typing import TYPE_CHECKING

from fedsynth.lazy import imported_when_asked_for

if TYPE_CHECKING:
    from fedsynth.evaluation.evaluation import Evaluation
    from fedsynth.evaluation.fidelity import frechet_distance
    from fedsynth.evaluation.image_set import ImageSet
    from fedsynth.evaluation.manifold import precision_recall_density_coverage
    from fedsynth.evaluation.measure_table import SPREAD, SPREAD_LEGEND, all_notes, mean_columns, measure_rows
    from fedsynth.evaluation.networks.domain_classifier import (
        FEATURE_SPACE,
        DomainClassifier,
        extract_features,
        predict_labels,
        train_domain_classifier,
    )
    from fedsynth.evaluation.networks.extractors import EXTRACTORS
    from fedsynth.evaluation.suite import FEATURE_SEED, Evaluator, Settings
    from fedsynth.evaluation.utility import CLASSIFIERS, DEFAULT_CLASSIFIERS, utility_scores

__all__ = [
    "CLASSIFIERS",
    "DEFAULT_CLASSIFIERS",
    "EXTRACTORS",
    "FEATURE_SEED",
    "FEATURE_SPACE",
    "SPREAD",
    "SPREAD_LEGEND",
    "DomainClassifier",
    "Evaluation",
    "Evaluator",
    "ImageSet",
    "Settings",
    "all_notes",
    "extract_features",
    "frechet_distance",
    "mean_columns",
    "measure_rows",
    "precision_recall_density_coverage",
    "predict_labels",
    "train_domain_classifier",
    "utility_scores",
]

__getattr__ = imported_when_asked_for(__name__)
