"""The silos train their own models, before the rounds of the strategies that ask models for samples or noise."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from fedsynth.config import RunConfig
from fedsynth.evaluation.memorisation import COPYING_SHARE
from fedsynth.messages import wire
from fedsynth.progress import SLICE_SECONDS, Progress
from fedsynth.spec import ImageSpec
from strategies.conversation.census import Census, Member
from strategies.conversation.replies import sound

logger = logging.getLogger("fedsynth")


def train_local_models(
    grid: Grid, census: Census, spec: ImageSpec, config: RunConfig, needed: int | None = None
) -> None:
    """Have every silo train its own model, in slices, so that progress shows and a crash loses little.

    A silo that finds its finished model on its disk answers at once. One that fails, answers nonsense, or is no
    further after a slice than before is left out of the rest of the training, with name and reason in the log.

    Args:
        grid: where the silos are.
        census: who they are; takes their loss curves.
        spec: image format and classes.
        config: the run's.
        needed: finished models without which the run ends; None: everybody's.

    Raises:
        RunError: fewer than ``needed``; says the first reason.
    """
    needed, exchange = len(census) if needed is None else needed, config.exchange
    request = {**wire.spec_to_config(spec), "train-seconds": SLICE_SECONDS}
    total = config.training.own_steps * len(census)
    progress = Progress("local training: step", total, logger.info, interval=SLICE_SECONDS / 3)
    stand, waiting = _Stand(census, config.training.own_steps), set(range(len(census)))
    while waiting:
        asked = [census.members[k].node_id for k in sorted(waiting)]
        messages = [wire.request(node, wire.PREPARE, request, ttl=exchange.reply_timeout) for node in asked]
        answered = set()
        for k, loss in sound(grid.send_and_receive(messages), needed - len(stand.finished), stand.read):
            answered.add(k)
            progress.update(sum(stand.steps.values()), loss=loss)
        waiting = answered - stand.finished


@dataclass
class _Stand:
    """How far every silo's model is, by position in the census."""

    census: Census
    goal: int
    steps: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)

    def read(self, reply: Message) -> tuple[int, float]:
        """Note an answer; return whose it is and its loss. ValueError where it makes no sense."""
        k, metrics = self.census.position(reply), wire.metrics(reply)
        if k is None:
            raise ValueError("not asked")
        loss = wire.number(metrics, "loss")
        if wire.number(metrics, "finished"):
            _note_finish(self.census.members[k], metrics)
            self.finished.add(k)
            self.steps[k] = self.goal
            return k, loss
        steps = int(wire.number(metrics, "steps"))
        if steps <= self.steps.get(k, 0):
            raise ValueError(f"stands at step {steps} after another slice of training: is its state folder kept?")
        self.steps[k] = steps
        return k, loss


def _note_finish(member: Member, metrics: MetricRecord) -> None:
    curve = zip(wire.numbers(metrics, "curve-steps"), wire.numbers(metrics, "curve-losses"), strict=True)
    member.curve = [(int(step), loss) for step, loss in curve]
    member.train_seconds = wire.number(metrics, "train-seconds")
    if not member.curve:
        raise ValueError("a finished model without a loss curve")
    step, loss = member.curve[-1]
    logger.info("%s: own model ready after %d steps, loss %.4g", member.name, step, loss)
    _note_copies(member, metrics)


def _note_copies(member: Member, metrics: MetricRecord) -> None:
    if "copied-share" not in metrics:
        return
    share = wire.number(metrics, "copied-share")
    if not 0 <= share <= 1:
        raise ValueError(f"copied-share = {share}: must be 0 to 1")
    member.copied_share = share
    if share > COPYING_SHARE:
        message = (
            "%s: %.0f %% of its model's samples are near-copies of its training images;"
            " more images or fewer steps would help"
        )
        logger.warning(message, member.name, 100 * share)
