"""Images of classes that too few silos hold for a secure sum: their holders draw them, as strategy ``pooled`` does."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
from flwr.app import ArrayRecord

from fedsynth.messages import transport
from strategies.base import Task
from strategies.conversation.ask import ask
from strategies.conversation.exchange import Exchange
from strategies.own_models.shares import collect_images, draw_owners, sample_questions

logger = logging.getLogger("fedsynth")

IMAGES, ROWS = "drawn-images", "drawn-rows"
"""Names of the arrays that hold them, and which of the set's images they are."""


class DrawnByHolders:
    """The images of some classes, each drawn by one holder from its own model.

    Args:
        task: the silos, their policies and the labels.
        prior: see :func:`fedsynth.mixture.log_prior`; who draws an image is drawn as for strategy ``pooled``.
        few: indices of the classes.
        ready: indices of the silos that have a model.

    Attributes:
        classes: those of them that somebody draws.
        notes: which silos' images did not come, for the reader of the dataset; empty until :meth:`draw`.
    """

    def __init__(self, task: Task, prior: str, few: Sequence[int], ready: Collection[int]) -> None:
        owners = draw_owners(task, prior, _able(task, ready))
        asked = torch.isin(task.labels, torch.tensor(few, dtype=torch.int64)) & (owners >= 0)
        self._task, self._rows = task, torch.nonzero(asked).squeeze(1)
        self._owners = owners[self._rows]
        self.classes: list[int] = torch.unique(task.labels[self._rows]).tolist()
        self.notes: tuple[str, ...] = ()

    def draw(self, exchange: Exchange) -> ArrayRecord:
        """Ask the holders for their images, and return those that came with their places in the set."""
        task, rows = self._task, self._rows
        questions = sample_questions(task, self._owners, task.labels[rows], rows)
        shares = collect_images(ask(exchange, questions, task.census, needed=0), task, self._owners)
        self.notes = shares.notes
        return transport.encode_tensors({IMAGES: shares.images[shares.drawn], ROWS: rows[shares.drawn]})


def _able(task: Task, ready: Collection[int]) -> torch.Tensor:
    """Return which silo may be asked for images of which class, bool (K, num_classes)."""
    holders = task.census.holders
    able = torch.zeros((len(task.census), len(holders)), dtype=torch.bool)
    for k, member in enumerate(task.census):
        policy = task.policies.get(member.name)
        if k in ready and (policy is None or "sample" in policy.answers):
            least = 1 if policy is None else policy.least_holders
            able[k] = torch.tensor([count >= least for count in holders])
    return able
