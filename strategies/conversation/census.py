"""Who takes part: the silos of a run, in an order that does not depend on node ids or on who answers first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch


@dataclass
class Member:
    """One silo.

    Attributes:
        node_id: its Flower node, new in every run.
        name: partition or silo name, the same in every run.
        num_examples: images it trains on.
        label_counts: those images per class.
        curve: loss curve of its own model, as (step, loss); empty before local training and after a private one.
        train_seconds: time its own model took to train, now or in an earlier run.
        copied_share: share of its own model's samples that are near-copies of its training images, 0 to 1; None if it
            does not say.
        sum_keys: its public keys for secure sums, as text; None if it has none.
        private_steps: optimiser steps of its own model, if that was trained privately.
        version: of the fedsynth that is installed there; empty if it does not say.
        images: where labels are few, what its own model is trained on, see
            :class:`~fedsynth.messages.prepare.PrepareRequest`; None: everything.
    """

    node_id: int
    name: str
    num_examples: int
    label_counts: list[int]
    curve: list[tuple[int, float]] = field(default_factory=list)
    train_seconds: float = 0.0
    copied_share: float | None = None
    sum_keys: str | None = None
    private_steps: int = 0
    version: str = ""
    images: str | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of its own model; 0 before local training."""
        return self.curve[-1][0] if self.curve else self.private_steps


class Census:
    """The silos of a run, sorted by partition or name.

    Args:
        members: in that order; a silo's index is its place here.
        known: whether the silos have said who they are; otherwise a member is a node.

    Attributes:
        members: as given.
        known: as given.
    """

    def __init__(self, members: Iterable[Member], known: bool = True) -> None:
        self.members = list(members)
        self.known = known

    @classmethod
    def unknown(cls, node_ids: Iterable[int], num_classes: int = 1) -> Census:
        """Return silos that have not been asked what they hold: each counts as one image of every class."""
        ids = sorted(node_ids)
        return cls((Member(node, f"node-{node}", num_classes, [1] * num_classes) for node in ids), known=False)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @property
    def label_counts(self) -> torch.Tensor:
        """Images per silo and class, int64 (K, num_classes)."""
        return torch.tensor([member.label_counts for member in self.members])

    @property
    def holders(self) -> tuple[int, ...]:
        """Silos that hold images of every class."""
        return tuple((self.label_counts > 0).sum(0).tolist())
