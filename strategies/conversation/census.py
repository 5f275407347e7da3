"""Who takes part: the silos of a run, in an order that does not depend on node ids or on who answers first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedsynth.errors import RunError
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.conversation.replies import usable

logger = logging.getLogger("fedsynth")


@dataclass
class Member:
    """One silo.

    Attributes:
        node_id: its Flower node, new in every run.
        name: partition or silo name, the same in every run.
        num_examples: images it trains on.
        label_counts: those images per class.
        curve: loss curve of its own model, as (step, loss); empty before local training.
        train_seconds: time its own model took to train, now or in an earlier run.
        copied_share: share of its own model's samples that are near-copies of its training images, 0 to 1; None if it
            does not say.
    """

    node_id: int
    name: str
    num_examples: int
    label_counts: list[int]
    curve: list[tuple[int, float]] = field(default_factory=list)
    train_seconds: float = 0.0
    copied_share: float | None = None


class Census:
    """The silos of a run, sorted by partition or name."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = list(members)
        self._by_name = {member.name: k for k, member in enumerate(self.members)}
        self._by_node = {member.node_id: k for k, member in enumerate(self.members)}

    @classmethod
    def unknown(cls, node_ids: Iterable[int], num_classes: int) -> Census:
        """Silos that have not been asked what they hold: each counts as one image of every class."""
        ids = sorted(node_ids)
        return cls(Member(node, f"node-{node}", num_classes, [1] * num_classes) for node in ids)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @property
    def label_counts(self) -> torch.Tensor:
        """Images per silo and class, int64 (K, num_classes)."""
        return torch.tensor([member.label_counts for member in self.members])

    def position(self, reply: Message) -> int | None:
        """Position of the silo that answered, or None for a stranger."""
        _, name = wire.silo_key(reply)
        return self._by_node.get(reply.metadata.src_node_id, self._by_name.get(name))


def take_census(grid: Grid, node_ids: list[int], spec: ImageSpec, timeout: float, max_silo_images: int) -> Census:
    """Ask every silo what it holds; one whose claim makes no sense is left out, with name and reason in the log.

    Raises:
        RunError: a silo cannot open its images, two go by one name, or nobody is left.
    """
    config = {**wire.spec_to_config(spec), "train-seconds": 0.0}
    requests = [wire.request(node, wire.PREPARE, config, ttl=timeout) for node in node_ids]
    replies = usable(grid.send_and_receive(requests), len(node_ids))
    members, reasons = [], []
    for reply in sorted(replies, key=wire.silo_key):
        try:
            members.append(_member(reply, len(spec.classes), max_silo_images))
        except (ValueError, OverflowError) as error:
            reasons.append(f"{wire.silo_key(reply)[1]}: {error}")
            logger.warning("%s left out of the run: %s", wire.silo_key(reply)[1], error)
    if not members:
        raise RunError(f"no silo can take part: {reasons[0]}")
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise RunError(f"two silos go by one name ({', '.join(names)}): give each its own silo-name")
    return Census(members)


def _member(reply: Message, num_classes: int, most: int) -> Member:
    """Read what a silo says of itself; ValueError where it makes no sense."""
    _, name = wire.silo_key(reply)
    counts = [int(count) for count in wire.numbers(wire.metrics(reply), "label-counts")]
    if len(counts) != num_classes or min(counts) < 0:
        raise ValueError(f"label counts {counts} do not fit {num_classes} classes")
    if not 1 <= sum(counts) <= most:
        raise ValueError(f"claims {sum(counts)} images, must be 1 to max-silo-images = {most}")
    return Member(reply.metadata.src_node_id, name, sum(counts), counts)
