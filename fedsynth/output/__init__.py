"""What a run leaves behind: the dataset, the run folder, the pictures and the report."""

from typing import TYPE_CHECKING

from fedsynth.lazy import imported_when_asked_for

if TYPE_CHECKING:
    from fedsynth.output.class_folders import folder_names
    from fedsynth.output.classifier import write_classifier
    from fedsynth.output.dataset import SyntheticDataset, describe_dataset, read_dataset, write_dataset
    from fedsynth.output.evaluation_figures import (
        Embedding,
        NearestImages,
        embedding_scatter,
        nearest_images,
        per_class_bars,
    )
    from fedsynth.output.figures import (
        image_grid,
        label_distribution,
        loss_curves,
        png_bytes,
        real_beside_synthetic,
        round_curve,
    )
    from fedsynth.output.model_card import model_card
    from fedsynth.output.report import ReportContent, evaluation_parts, write_report
    from fedsynth.output.report_table import ReportTable
    from fedsynth.output.report_words import ROUNDS, headings_and_meanings
    from fedsynth.output.run_folder import RunFolder, default_name
    from fedsynth.output.terminal import terminal_table
    from fedsynth.output.verdict import (
        Findings,
        Usefulness,
        attack_of,
        findings_on_publishing,
        verdict_of,
        why_not_publish,
    )

__all__ = [
    "ROUNDS",
    "Embedding",
    "Findings",
    "NearestImages",
    "ReportContent",
    "ReportTable",
    "RunFolder",
    "SyntheticDataset",
    "Usefulness",
    "attack_of",
    "default_name",
    "describe_dataset",
    "embedding_scatter",
    "evaluation_parts",
    "findings_on_publishing",
    "folder_names",
    "headings_and_meanings",
    "image_grid",
    "label_distribution",
    "loss_curves",
    "model_card",
    "nearest_images",
    "per_class_bars",
    "png_bytes",
    "read_dataset",
    "real_beside_synthetic",
    "round_curve",
    "terminal_table",
    "verdict_of",
    "why_not_publish",
    "write_classifier",
    "write_dataset",
    "write_report",
]

__getattr__ = imported_when_asked_for(__name__)
