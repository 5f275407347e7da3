"""What a run leaves behind: the dataset, the run folder, the pictures and the report."""

from fedsynth.output.dataset import SyntheticDataset, read_dataset, write_dataset
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
from fedsynth.output.measured import explained, measured_parts
from fedsynth.output.names import folder_names
from fedsynth.output.report import ReportContent, write_report
from fedsynth.output.run_folder import RunFolder, default_name
from fedsynth.output.terminal_table import results_table

__all__ = [
    "Embedding",
    "NearestImages",
    "ReportContent",
    "RunFolder",
    "SyntheticDataset",
    "default_name",
    "embedding_scatter",
    "explained",
    "folder_names",
    "image_grid",
    "label_distribution",
    "loss_curves",
    "measured_parts",
    "nearest_images",
    "per_class_bars",
    "png_bytes",
    "read_dataset",
    "real_beside_synthetic",
    "results_table",
    "round_curve",
    "write_dataset",
    "write_report",
]
