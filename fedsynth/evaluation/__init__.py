"""How good a synthetic dataset is: fidelity, coverage and utility against real images."""

from fedsynth.evaluation.features import (
    FEATURE_SPACE,
    DomainClassifier,
    extract_features,
    train_domain_classifier,
)
from fedsynth.evaluation.fidelity import frechet_distance
from fedsynth.evaluation.manifold import precision_recall_density_coverage
from fedsynth.evaluation.suite import FEATURE_SEED, Evaluation, Fidelity, evaluate
from fedsynth.evaluation.table import all_notes, results_rows, summarise
from fedsynth.evaluation.utility import CLASSIFIERS, utility

__all__ = [
    "CLASSIFIERS",
    "FEATURE_SEED",
    "FEATURE_SPACE",
    "DomainClassifier",
    "Evaluation",
    "Fidelity",
    "all_notes",
    "evaluate",
    "extract_features",
    "frechet_distance",
    "precision_recall_density_coverage",
    "results_rows",
    "summarise",
    "train_domain_classifier",
    "utility",
]
