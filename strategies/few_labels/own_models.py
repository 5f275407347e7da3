"""The diffusion phase of few labels where silos keep their models: what silos lack is drawn by all (our choice).

The server never has a model. The images that silos lack and those of the dataset are one set, which ``dfd`` or
``pooled`` draws as ever, from models that were trained on labelled and pseudo-labelled images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from flwr.app import ArrayRecord

from fedsynth.config.methods import DDSASettings
from fedsynth.few_labels.quota import QUOTAS, deal
from fedsynth.messages import SynthesiseAnswer, SynthesiseRequest, transport
from strategies.base import SynthesisStrategy, Task
from strategies.conversation.ask import Question
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.conversation.permission import leave_out_rare_classes
from strategies.cooperation.dfd import DfD
from strategies.own_models.local_training import train_local_models
from strategies.own_models.pooled import Pooled

DATASET = -1
"""Stands for the dataset where a silo's index says who gets an image."""


class OwnModels:
    """What silos lack and the dataset, drawn from the silos' own models.

    A silo counts as a holder of what its own model was trained on: labelled and pseudo-labelled images, by the numbers
    that it told. One with neither trains nothing and is not asked. A real silo that has no labels of a class, and fewer
    pseudo-labels than its policy's ``least-class-images``, is not asked about that class.

    Args:
        settings: the run's.
        task: the run's; its census takes the loss curves of the silos' models.
        run_token: by which silos know what they have pseudo-labelled.
        kept: pseudo-labelled images by silo and class; empty: there are none.

    Attributes:
        strategy: draws the set; its rounds are those of the diffusion phase.
        notes: what a reader of the dataset must know; empty until :meth:`finish`.
    """

    def __init__(self, settings: DDSASettings, task: Task, run_token: str, kept: list[list[int]]) -> None:
        counts = task.census.label_counts
        self._whole = task
        # What nobody labels, nobody draws.
        self._of_dataset = task.labels[counts.sum(0)[task.labels] > 0]
        self._quota = QUOTAS[settings.synthetic_quota](counts, settings.synthetic_multiplier)
        lacking = torch.arange(counts.shape[1]).repeat(len(counts)).repeat_interleave(self._quota.flatten())
        census = Census(_holders(task, kept))
        if task.policies:
            leave_out_rare_classes(task.policies, census, task.spec)
        labels = torch.cat([self._of_dataset, lacking])
        self._task = replace(task, census=census, labels=labels, run_token=run_token)
        self.notes: tuple[str, ...] = ()
        self.strategy: SynthesisStrategy
        if settings.diffusion_strategy == "dfd":
            self.strategy = DfD(**settings.cooperation().model_dump())
        else:
            self.strategy = Pooled(sampler=settings.sampler)

    def begin(self, exchange: Exchange) -> ArrayRecord:
        """Have the silos train their models, and return what the first round starts from; errors as the strategy's."""
        arrays = self.strategy.begin(self._task, exchange)
        self._tell_census()
        return arrays

    def meet(self, exchange: Exchange) -> None:
        """Have the silos find their models again after the last round, when a run continues."""
        train_local_models(exchange, self._task, self.strategy.quorum)
        self._tell_census()

    def finish(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return who gets which image, as ``images`` uint8 (n, H, W, C), ``labels`` and ``silos``, both int64 (n,).

        ``silos`` is :data:`DATASET` for an image of the dataset. If fewer were drawn than are needed, the dataset has
        its own first, then the silos in their order.
        """
        outcome = self.strategy.finish(self._task, arrays)
        self.notes = outcome.notes
        labels = torch.from_numpy(outcome.labels)
        of_dataset = torch.bincount(self._of_dataset, minlength=self._quota.shape[1])
        takers = deal(labels, torch.cat([of_dataset[None], self._quota])) + DATASET
        return transport.encode_tensors({"images": torch.from_numpy(outcome.images), "labels": labels, "silos": takers})

    def _tell_census(self) -> None:
        trained = {member.name: member for member in self._task.census}
        for member in self._whole.census:
            if (own := trained.get(member.name)) is not None:
                member.curve, member.private_steps = own.curve, own.private_steps
                member.train_seconds, member.copied_share = own.train_seconds, own.copied_share


def hand_out(task: Task, arrays: ArrayRecord, run_token: str) -> list[Question[SynthesiseAnswer]]:
    """Send every silo the images that were drawn for it, sorted by class; ``arrays`` as :meth:`OwnModels.finish`."""
    images, labels, silos = (transport.decode(arrays[name]) for name in ("images", "labels", "silos"))
    questions: list[Question[SynthesiseAnswer]] = []
    for k in torch.unique(silos[silos > DATASET]).tolist():
        rows = torch.nonzero(silos == k).squeeze(1)
        rows = rows[labels[rows].argsort(stable=True)]
        quota = torch.bincount(labels[rows], minlength=len(task.spec.classes))
        request = SynthesiseRequest(
            images=images[rows],
            quota=tuple(quota.tolist()),
            sampler=task.sampler,
            spec=task.spec,
            run_token=run_token,
        )
        questions.append((k, request))
    return questions


def _holders(task: Task, kept: list[list[int]]) -> list[Member]:
    """Return the silos that have something to train a model on, as holders of it."""
    holders = []
    for k, member in enumerate(task.census):
        policy = task.policies.get(member.name)
        least = 1 if policy is None else policy.least_class_images
        pseudo = kept[k] if kept else [0] * len(member.label_counts)
        counts = [
            labelled + (number if labelled or number >= least else 0)
            for labelled, number in zip(member.label_counts, pseudo, strict=True)
        ]
        if sum(counts):
            images = "pseudo" if sum(pseudo) else "labelled"
            holders.append(replace(member, label_counts=counts, num_examples=sum(counts), images=images))
    return holders
