"""What a silo counts of its answers, and which lines of its policy bound that."""

from __future__ import annotations

OWN_MODEL = "own-models"
SECONDS = "compute-seconds"

CEILINGS: dict[str, tuple[str, str]] = {
    "noise-queries": ("noise_queries_per_run", "noise_queries_in_all"),
    "images-drawn": ("images_drawn_per_run", "images_drawn_in_all"),
    "optimiser-steps": ("optimiser_steps_per_run", "optimiser_steps_in_all"),
    "evaluations": ("", "evaluations_in_all"),
    "classifier-questions": ("", "classifier_questions_in_all"),
    SECONDS: ("compute_seconds_per_run", "compute_seconds_in_all"),
    OWN_MODEL: ("", ""),
}
"""What is counted -> fields of the policy that bound it in a run and in all runs."""
