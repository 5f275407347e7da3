"""Synthetic images that silos draw themselves: who draws which, and where the answers go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecordValues, Message

from fedsynth.messages import wire
from fedsynth.mixture import log_prior
from fedsynth.seeding import make_generator
from strategies.base import Task
from strategies.conversation.replies import malformed_named, seconds_worked, usable


def draw_owners(task: Task, prior: str, able: torch.Tensor | None = None) -> torch.Tensor:
    """Return the position of the silo that draws each image (N,), with probability w_{i,y}.

    Args:
        task: silos, and the label of every image.
        prior: see :func:`fedsynth.mixture.log_prior`.
        able: which silos may draw, bool (K,); None: all.

    Raises:
        UserError: a class that no silo holds.
    """
    counts = task.census.label_counts
    weights = log_prior(prior, counts if able is None else counts * able[:, None], task.labels).exp()
    generator = make_generator(task.config.run.seed, "owners")
    return torch.multinomial(weights.T, 1, generator=generator).squeeze(1)


def sample_requests(
    task: Task,
    owners: torch.Tensor,
    labels: torch.Tensor,
    numbers: torch.Tensor,
    config: Mapping[str, ConfigRecordValues],
    weights: ArrayRecord | None = None,
) -> list[Message]:
    """Ask every silo for the images it owns.

    Args:
        task: the silos.
        owners: position of the silo that draws each image (n,).
        labels: class of every image (n,).
        numbers: which noise every image starts from (n,), see :func:`fedsynth.diffusion.draw_initial_noise`.
        config: sent along.
        weights: the exchanged part of the federated model to draw from; None: each silo's own model.
    """
    messages = []
    for k, member in enumerate(task.census):
        rows = torch.nonzero(owners == k).squeeze(1)
        if not len(rows):
            continue
        record = wire.encode_tensors({wire.LABELS: labels[rows], wire.NUMBERS: numbers[rows]})
        content = {**config, "sampler": task.sampler}
        message = wire.request(member.node_id, wire.SAMPLE, content, record, task.config.exchange.reply_timeout)
        if weights is not None:
            message.content[wire.WEIGHTS] = weights
        messages.append(message)
    return messages


def collect_images(replies: Iterable[Message], task: Task, owners: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Put every silo's images in their places.

    Returns:
        Images, uint8 (n, H, W, C), and the seconds the silos worked.

    Raises:
        RunError: a silo's share is missing or unusable.
    """
    channels, height, width = task.spec.shape
    images = torch.zeros((len(owners), height, width, channels), dtype=torch.uint8)
    seconds = 0.0
    for reply in usable(replies, len(torch.unique(owners))):
        k = task.census.position(reply)
        rows = torch.nonzero(owners.eq(-1 if k is None else k)).squeeze(1)
        with malformed_named(reply):
            images[rows] = _read_images(reply, (len(rows), *images.shape[1:]))
            seconds += seconds_worked(reply)
    return images, seconds


def _read_images(reply: Message, shape: tuple[int, ...]) -> torch.Tensor:
    images = wire.decode(wire.array_record(reply, wire.ARRAYS)[wire.IMAGES])
    if images.shape != shape or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 {shape}")
    return images
