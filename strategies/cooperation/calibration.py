"""Calibration: four small questions before the rounds, which tell silos apart whose models cannot be trusted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import median

import torch

from fedsynth.config import AUTO, RunConfig
from fedsynth.diffusion import codec_of, make_scheduler
from fedsynth.diffusion.noise_levels import timestep_at
from fedsynth.diffusion.recipe import loss_of_zero
from fedsynth.errors import RunError
from fedsynth.messages import EpsilonAnswer, EpsilonRequest
from fedsynth.mixture.screening import LEVELS, median_answer, screen
from fedsynth.seeding import make_generator
from strategies.base import Task
from strategies.conversation.ask import Question, ask
from strategies.conversation.exchange import Exchange
from strategies.cooperation.screener import AnswerMemory

logger = logging.getLogger("fedsynth")

SAMPLES_PER_CLASS = 8
"""Samples of every class."""

UNDERTRAINED = 0.4
"""Share of :func:`remaining_loss` above which models are said to be undertrained.

Our choice, from networks of 8×8 digits. It decides about a warning alone. Three silos, for ``paper`` one, one seed:

==============================  ====  ====  ====  ====  ====  ====
steps of training               2     10    30    40    60    100
==============================  ====  ====  ====  ====  ====  ====
default recipe                  2.2   0.43  0.25  0.24  0.19  0.16
the same, 8 and 16 wide         4.3   1.26  0.52  0.42  0.31  0.24
paper, rate 2e-3, 8 and 16      1.05  0.53  --    0.22  0.25  --
==============================  ====  ====  ====  ====  ====  ====
"""


class Calibration:
    """Four small questions before the rounds, on samples that the server makes without any real image.

    The samples start as noise. After each question the coordinate-wise median of the usable answers says what images
    they imply, which are clipped to their range and noised again to the next of :data:`LEVELS`. Because that noise is
    new, an answer to earlier samples does not follow it. Silos that are honest at T alone are found out below. Where
    the only holder of a class echoes its input, the images are grey and the echo is a right answer: it passes.

    Ask every silo k about ``samples[asks[k]]`` at ``timestep``, hand the answers to :meth:`advance`, and go on until
    ``finished``.

    Args:
        holds: whether silo k holds images of class y, bool (K, num_classes).
        shape: (c, h, w) of a sample.
        alphas_cumprod: ᾱ of every timestep (T,).
        seed: the run's.
        bound: largest absolute value of clean samples.

    Attributes:
        samples: what to ask about next, (M, C, H, W).
        labels: their classes (M,), :data:`SAMPLES_PER_CLASS` of every class that anybody holds.
        asks: whom to ask about what, bool (K, M).
        faults: what was found so far, by (silo, class).
        alike: what most holders of a class miss alike, by (silo, class): it is not held against them.
        equal: groups that gave equal answers to the last question, by class.
    """

    def __init__(
        self,
        holds: torch.Tensor,
        shape: Sequence[int],
        alphas_cumprod: torch.Tensor,
        seed: int,
        bound: float = 1.0,
    ) -> None:
        self._alphas_bar = alphas_cumprod.double()
        self._seed, self._bound = seed, bound
        self._timesteps = [timestep_at(alphas_cumprod, alpha_bar) for alpha_bar in LEVELS]
        self._level, self._memory = 0, AnswerMemory()
        self.labels = torch.nonzero(holds.any(0)).flatten().repeat_interleave(SAMPLES_PER_CLASS)
        self.asks = holds[:, self.labels]
        self.samples = self._noise((len(self.labels), *shape))
        self.faults: dict[tuple[int, int], str] = {}
        self.alike: dict[tuple[int, int], str] = {}
        self.equal: dict[int, tuple[tuple[int, ...], ...]] = {}

    @property
    def finished(self) -> bool:
        """Whether all questions have been asked."""
        return self._level == len(self._timesteps)

    @property
    def timestep(self) -> int:
        """Noise level of ``samples``."""
        return self._timesteps[self._level]

    def excluded(self, num_classes: int) -> torch.Tensor:
        """Which silos must not be asked about which class, bool (K, num_classes)."""
        excluded = torch.zeros((len(self.asks), num_classes), dtype=torch.bool)
        for silo, label in self.faults:
            excluded[silo, label] = True
        return excluded

    def reasons(self, silo: int) -> list[str]:
        """What speaks against a silo, a line a reason; empty if it may take part in everything."""
        found: dict[str, list[int]] = {}
        for (k, label), why in sorted(self.faults.items()):
            if k == silo:
                found.setdefault(why, []).append(label)
        return [f"class index {', '.join(map(str, labels))}: {why}" for why, labels in found.items()]

    @property
    def power(self) -> float:
        """Mean square of the images that the last answers imply; of the samples before."""
        return float(self.samples.square().mean())

    def advance(self, eps: torch.Tensor, answered: torch.Tensor) -> None:
        """Judge the answers about ``samples`` and make those of the next level.

        A silo is not asked again about a class for which it was found out. Where nobody gave a usable answer, the next
        samples are grey images.

        Args:
            eps: answers (K, M, C, H, W); what a silo was not asked or did not answer may be anything.
            answered: bool (K,).
        """
        for label in self.labels.unique().tolist():
            rows = torch.nonzero(self.labels == label).flatten()
            known = answered & self.asks[:, rows[0]]
            answers = eps[:, rows]
            sound = known & ~self._judge(answers, rows, label, known)
            self.asks[:, rows] &= (sound | ~answered)[:, None]
            self.samples[rows] = self._implied(answers, rows, sound) if sound.any() else 0.0
        self._level += 1
        if not self.finished:
            alpha_bar = float(self._alphas_bar[self.timestep])
            self.samples = alpha_bar**0.5 * self.samples + (1 - alpha_bar) ** 0.5 * self._noise(self.samples.shape)

    def _judge(self, eps: torch.Tensor, rows: torch.Tensor, label: int, known: torch.Tensor) -> torch.Tensor:
        """Note what is wrong; return whom that concerns, bool (K,)."""
        alpha_bar = float(self._alphas_bar[self.timestep])
        outcome = screen(eps, self.samples[rows], alpha_bar, known, self._bound)
        for k, miss in outcome.alike.items():
            self.alike[k, label] = f"t = {self.timestep}: {miss}"
        for k in torch.nonzero(known).flatten().tolist():
            why = outcome.faults.get(k)
            if self._memory.repeats(k, label, eps[k], self.samples[rows], alpha_bar):
                why = why or "repeats its last answer"
            if why:
                self.faults[k, label] = f"t = {self.timestep}: {why}"
        self.equal[label] = outcome.equal
        return torch.tensor([(k, label) in self.faults for k in range(len(known))])

    def _implied(self, eps: torch.Tensor, rows: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        alpha_bar = float(self._alphas_bar[self.timestep])
        clean: torch.Tensor = (self.samples[rows] - (1 - alpha_bar) ** 0.5 * median_answer(eps, sound)) / alpha_bar**0.5
        return clean.clamp(-self._bound, self._bound)

    def _noise(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=make_generator(self._seed, "calibration", self._level))


def calibrate(exchange: Exchange, task: Task, holds: torch.Tensor) -> Calibration:
    """Ask the four questions; log who is not trusted with what, and why, and whether all are undertrained.

    A silo that does not answer is neither trusted nor distrusted: the rounds will show.

    Args:
        exchange: the way to the silos.
        task: who they are.
        holds: whether silo k is to be asked about class y, bool (K, num_classes).
    """
    config = task.config
    alphas_cumprod = make_scheduler(config.recipe).alphas_cumprod
    codec = codec_of(config, task.spec)
    calibration = Calibration(holds, codec.shape, alphas_cumprod, config.run.seed, codec.bound)
    while not calibration.finished:
        calibration.advance(*_answers(exchange, task, calibration))
    for k, member in enumerate(task.census):
        reasons = calibration.reasons(k)
        for reason in reasons:
            logger.warning("%s is not asked further: %s", member.name, reason)
        if reasons:
            exchange.reply_log.leave_out(member.node_id, f"screening: {reasons[0]}")
    _warn_of_undertraining(calibration, task)
    return calibration


def _warn_of_undertraining(calibration: Calibration, task: Task) -> None:
    if calibration.alike:
        classes = ", ".join(map(str, sorted({label for _, label in calibration.alike})))
        (silo, _), example = min(calibration.alike.items())
        name = task.census.members[silo].name
        logger.warning(
            "class index %s: most holders miss alike what trained models keep (%s, %s)", classes, name, example
        )
    share = remaining_loss(calibration, task)
    middle = ""
    if share is not None and share > UNDERTRAINED:
        percent, most = 100 * share, 100 * UNDERTRAINED
        middle = f": the middle one has {percent:.0f} % of the loss of answering nothing, more than {most:.0f} %"
    if calibration.alike or middle:
        logger.warning(
            "the silos' models are undertrained%s: raise %s, or have the silos bring better models; the run goes on",
            middle,
            steps_key(task.config),
        )


def remaining_loss(calibration: Calibration, task: Task) -> float | None:
    """Return the middle silo's last loss, as a share of that of a network that answers 0.

    It holds for whatever networks predict. Not so what they answer about the calibration's samples: to pure noise a
    network that predicts images is right at once, and a network that draws the same grey image whatever it is asked is
    an exact model of that image. How bright images are is taken from those that the answers imply: grey ones, as of
    networks that have hardly been trained, make the share larger. None where no silo tells a loss.
    """
    losses = [member.curve[-1][1] for member in task.census if member.curve]
    recipe = task.config.recipe
    nothing = loss_of_zero(make_scheduler(recipe).alphas_cumprod, calibration.power, recipe)
    return median(losses) / nothing if losses and nothing > 0 else None


def steps_key(config: RunConfig) -> str:
    """Return the key that says how long silos train models of their own, with its value."""
    key = "train-steps" if config.training.local_steps == AUTO else "local-steps"
    key = "dp-steps" if config.private else key
    return f"{key} ({config.own_steps})"


def trusted_prior(prior: torch.Tensor, exchange: Exchange, task: Task) -> torch.Tensor:
    """Calibrate, and exclude silos from classes for which their models are not fit.

    Args:
        prior: log prior weights (K, N).
        exchange: the way to the silos.
        task: who they are.

    Raises:
        RunError: no silo's model is fit to answer.
    """
    num_classes = len(task.spec.classes)
    holds = torch.zeros((len(task.census), num_classes), dtype=torch.bool)
    holds[:, task.labels] = ~torch.isneginf(prior)
    excluded = calibrate(exchange, task, holds).excluded(num_classes)
    fit = (holds & ~excluded).any(0)
    if not fit.any():
        raise RunError(
            "calibration found no silo's model fit to answer, for the reasons above: if the silos are honest, start a"
            f" run with more {steps_key(task.config)}, or with screening = false"
        )
    if lost := torch.nonzero(holds.any(0) & ~fit).flatten().tolist():
        logger.warning("class index %s: no holder's model is fit to answer", ", ".join(map(str, lost)))
    return prior.masked_fill(excluded[:, task.labels], -torch.inf)


def _answers(exchange: Exchange, task: Task, calibration: Calibration) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise predictions (K, M, C, H, W) for the calibration's samples, and who answered, bool (K,)."""
    questions: list[Question[EpsilonAnswer]] = []
    for k, asked in enumerate(calibration.asks):
        rows = torch.nonzero(asked).flatten()
        if len(rows):
            request = EpsilonRequest(
                samples=calibration.samples[rows],
                labels=calibration.labels[rows],
                timestep=calibration.timestep,
                holders=task.census.holders,
                rows=rows,
                wire_dtype=task.config.exchange.wire_dtype,
            )
            questions.append((k, request))
    eps = torch.zeros((len(task.census), *calibration.samples.shape))
    answered = torch.zeros(len(task.census), dtype=torch.bool)
    for k, answer in ask(exchange, questions, task.census, needed=0):
        eps[k, answer.rows] = answer.epsilon
        answered[k] = True
    return eps, answered
