"""Synthetic images that silos draw themselves: who draws which, and where the answers go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord

from fedsynth.messages import SampleAnswer, SampleRequest
from fedsynth.mixture import log_prior
from fedsynth.seeding import make_generator
from strategies.base import Task
from strategies.conversation.ask import Question


class Shares(NamedTuple):
    """What the silos drew.

    Attributes:
        images: uint8 (n, H, W, C); zero where nobody drew.
        drawn: which of them were drawn, bool (n,).
        seconds: time the silos worked.
        notes: which silos' shares are missing, for the reader of the dataset.
    """

    images: torch.Tensor
    drawn: torch.Tensor
    seconds: float
    notes: tuple[str, ...]


def draw_owners(task: Task, prior: str, able: torch.Tensor | None = None) -> torch.Tensor:
    """Return the index of the silo that draws each image (N,), with probability w_{i,y}.

    Args:
        task: silos, and the label of every image.
        prior: see :func:`fedsynth.mixture.log_prior`.
        able: which silos can draw, bool (K,), or what of each class, bool (K, num_classes); None: all. An image whose
            class none of them holds is owned by -1.

    Raises:
        UserError: a class that no silo holds.
    """
    counts = task.census.label_counts
    log_prior(prior, counts, task.labels)  # refuses a class without any holder
    if able is not None:
        counts = counts * (able if able.ndim == 2 else able[:, None])
    lost = counts.sum(0) == 0
    weights = log_prior(prior, counts + lost, task.labels).exp()
    generator = make_generator(task.config.run.seed, "owners")
    owners = torch.multinomial(weights.T, 1, generator=generator).squeeze(1)
    return owners.masked_fill(lost[task.labels], -1)


def sample_questions(
    task: Task,
    owners: torch.Tensor,
    labels: torch.Tensor,
    numbers: torch.Tensor,
    weights: ArrayRecord | None = None,
    server_round: int | None = None,
    run_token: str | None = None,
) -> list[Question[SampleAnswer]]:
    """Ask every silo for the images it owns.

    Args:
        task: the silos.
        owners: index of the silo that draws each image (n,).
        labels: class of every image (n,).
        numbers: which noise every image starts from (n,), see :func:`fedsynth.diffusion.draw_initial_noise`.
        weights: the exchanged part of the federated model to draw from; None: each silo's own model.
        server_round, run_token: of the federated model.
    """
    questions: list[Question[SampleAnswer]] = []
    for k in torch.unique(owners[owners >= 0]).tolist():
        rows = torch.nonzero(owners == k).squeeze(1)
        request = SampleRequest(
            labels=labels[rows],
            numbers=numbers[rows],
            spec=task.spec,
            sampler=task.sampler,
            holders=task.census.holders,
            weights=weights,
            # Beside the run's own images, those that silos lack.
            set_size=len(task.labels) if len(task.labels) > task.config.sampling.num_samples else None,
            server_round=server_round,
            run_token=run_token,
        )
        questions.append((k, request))
    return questions


def collect_images(answers: Iterator[tuple[int, SampleAnswer]], task: Task, owners: torch.Tensor) -> Shares:
    """Put every silo's images in their places."""
    channels, height, width = task.spec.shape
    images = torch.zeros((len(owners), height, width, channels), dtype=torch.uint8)
    drawn = torch.zeros(len(owners), dtype=torch.bool)
    seconds = 0.0
    for k, answer in answers:
        rows = owners == k
        images[rows] = answer.images
        drawn |= rows
        seconds += answer.seconds
        del answer
    return Shares(images, drawn, seconds, _notes_on_missing(task, owners, drawn))


def _notes_on_missing(task: Task, owners: torch.Tensor, drawn: torch.Tensor) -> tuple[str, ...]:
    notes = []
    silent = [task.shown_names[k] for k in torch.unique(owners[~drawn & (owners >= 0)]).tolist()]
    if silent:
        notes.append(f"without the images that {', '.join(silent)} should have drawn")
    # Sets of silos that draw for themselves have other labels than the run's.
    if (owners < 0).any():
        lost = [task.spec.classes[label] for label in torch.unique(task.labels[owners < 0]).tolist()]
        notes.append(f"no images of class {', '.join(lost)}: none of its holders has a model")
    return tuple(notes)
