"""The silos train their own models, before the rounds of the strategies that ask models for samples or noise."""

from __future__ import annotations

import logging

from fedsynth.evaluation.memorisation import COPYING_SHARE
from fedsynth.messages import MessageError, PrepareAnswer, PrepareRequest
from fedsynth.progress import Progress
from strategies.base import Task
from strategies.conversation.ask import Quorum, ask, replies_needed
from strategies.conversation.census import Member
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

SLICE_SECONDS = 15.0
"""Seconds a silo trains before it reports progress, and what a crash costs at most."""


def train_local_models(exchange: Exchange, task: Task, auto: Quorum = "all") -> set[int]:
    """Have every silo train its own model, in slices, so that progress shows and a crash loses little.

    A silo that finds its finished model on its disk answers at once. One that fails, answers nonsense, or is no
    further after a slice than before is left out of the rest of the training, with name and reason in the log.

    Args:
        exchange: the way to the silos.
        task: who they are; the census takes their loss curves.
        auto: how many finished models are enough where ``min-replies`` is ``"auto"``.

    Returns:
        Indices of the silos whose models are ready.

    Raises:
        RunError: too few of them; says the first reason.
    """
    census = task.census
    goal, private = task.config.own_steps, task.config.private
    needed = replies_needed(task.config.exchange.min_replies, len(census), auto)
    progress = Progress("local training: step", goal * len(census), logger.info, interval=SLICE_SECONDS / 3)
    steps = dict.fromkeys(range(len(census)), 0)
    ready: set[int] = set()

    def check(silo: int, answer: PrepareAnswer) -> None:
        if not answer.finished and (answer.steps or 0) <= steps[silo]:
            raise MessageError(f"stands at step {answer.steps} after another slice: is its state folder kept?")
        if not answer.finished and (answer.steps or 0) >= goal:
            raise MessageError(f"claims {answer.steps} of {goal} steps, and an unfinished model")

    waiting = list(range(len(census)))
    while waiting:
        questions = [
            (
                k,
                PrepareRequest(
                    spec=task.spec,
                    train_seconds=SLICE_SECONDS,
                    private=private,
                    images=census.members[k].images,
                    run_token=task.run_token,
                ),
            )
            for k in waiting
        ]
        waiting = []
        for k, answer in ask(exchange, questions, census, needed=needed - len(ready), check=check):
            if answer.finished:
                ready.add(k)
                _note_model(census.members[k], answer)
            else:
                waiting.append(k)
            steps[k] = goal if answer.finished else answer.steps or 0
            values = {} if answer.loss is None else {"loss": answer.loss}
            progress.update(sum(steps.values()), **values)
        waiting.sort()
    return ready


def _note_model(member: Member, answer: PrepareAnswer) -> None:
    member.curve = answer.curve
    member.private_steps = 0 if answer.curve else answer.steps or 0
    member.train_seconds = answer.train_seconds
    member.copied_share = answer.copied_share
    loss = f", loss {member.curve[-1][1]:.4g}" if member.curve else ""
    logger.info("%s: own model ready after %d steps%s", member.name, member.steps, loss)
    if answer.copied_share is not None and answer.copied_share > COPYING_SHARE:
        logger.warning(
            "%s: %.0f %% of its model's samples are near-copies of its training images;"
            " more images or fewer steps would help",
            member.name,
            100 * answer.copied_share,
        )
