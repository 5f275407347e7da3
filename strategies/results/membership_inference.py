"""Membership inference against the models of a simulated run: who was trained on?

Only where the server knows the answer, in simulation. A silo's own model is attacked as a server could attack a real
one, through nothing but noise predictions; a model on the server directly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray

from fedsynth.data import Federation, LabelledImages
from fedsynth.diffusion import Codec, codec_of, make_scheduler, noise_predictor
from fedsynth.diffusion.noise_levels import timestep_at
from fedsynth.evaluation.image_set import matched_by_class
from fedsynth.evaluation.membership import Membership, epsilon_errors, roc, squared_errors, with_noise
from fedsynth.messages import EpsilonAnswer, EpsilonRequest
from fedsynth.seeding import derive_seed, make_generator
from strategies.base import Outcome, Task
from strategies.conversation.ask import Question, ask
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")

LEVELS = (0.895, 0.656, 0.394)
"""Noise levels attacked, as ᾱ, those of the linear schedule at 0.1, 0.2 and 0.3 T: Matsumoto et al. 2023 find
intermediate ones the most telling."""
MOST_ATTACKED = 300
"""Members, and as many non-members, per model."""
PURPOSE = "membership-inference"
GLOBAL_MODEL = "global model"


@dataclass(frozen=True)
class ModelAttack:
    """Membership inference against the models of a run.

    Attributes:
        timesteps: noise levels attacked.
        by_model: the attack on each model, by silo or ``global model``.
    """

    timesteps: tuple[int, ...]
    by_model: Mapping[str, Membership]

    def row(self) -> dict[str, Any]:
        """Return the columns of ``results.json``: mean and highest over the models, and by model."""
        rows = {name: attack.row("epsilon-") for name, attack in self.by_model.items()}
        keys = ("epsilon-membership-auc", "epsilon-membership-tpr-at-1-percent-fpr")
        row: dict[str, Any] = {key: fmean(row[key] for row in rows.values()) for key in keys}
        row |= {f"{key}-highest": max(row[key] for row in rows.values()) for key in keys}
        return {**row, "epsilon-membership": rows}

    def table(self) -> dict[str, dict[str, Any]]:
        """Lay out as measure -> columns; ``real`` is what guessing reaches."""
        row, n = self.row(), sum(attack.n_members for attack in self.by_model.values())
        beside = {"N": n, "in": f"noise predictions at t = {', '.join(map(str, self.timesteps))}"}
        guessing = {"epsilon-membership-auc": 0.5, "epsilon-membership-tpr-at-1-percent-fpr": 0.01}
        return {
            key: {"synthetic": row[key], "real": value, "highest": row[f"{key}-highest"], "better": "lower", **beside}
            for key, value in guessing.items()
        }


def attack_models(exchange: Exchange, task: Task, outcome: Outcome) -> ModelAttack | None:
    """Attack the model on the server, or else the silos' own models.

    Non-members are test images and what the silo held out from training, members as many of its training images of
    every class, so that nothing but the training tells them apart.

    Returns:
        None where the server does not know who was trained on, no model is left to attack, or it sees sums of their
        answers only.
    """
    federation = task.federation
    if federation is None:
        return None
    if outcome.unet is None and task.config.cooperation.secure_aggregation:
        logger.info("secure-aggregation = true: no silo's model is attacked, the server cannot ask one alone")
        return None
    timesteps = _timesteps(task)
    if outcome.unet is not None:
        logger.info("membership inference against the model on the server")
        attacks = {GLOBAL_MODEL: _attack_server(task, federation, outcome.unet, timesteps)}
    elif any(member.steps for member in task.census):
        logger.info("membership inference against the silos' models, through noise predictions")
        attacks = _attack_silos(exchange, task, federation, timesteps)
    else:
        return None
    found = {name: attack for name, attack in attacks.items() if attack is not None}
    return ModelAttack(timesteps, found) if found else None


def attack_generator(task: Task, federation: Federation, unet: UNet2DModel) -> Membership | None:
    """Attack a model that was trained on released images: does it tell who the silos' models were trained on?"""
    logger.info("membership inference against the generator")
    return _attack_server(task, federation, unet, _timesteps(task))


def _timesteps(task: Task) -> tuple[int, ...]:
    alphas = make_scheduler(task.config.recipe).alphas_cumprod
    return tuple(timestep_at(alphas, alpha_bar) for alpha_bar in LEVELS)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Members first, then as many non-members."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def drawn(cls, members: LabelledImages, others: LabelledImages, codec: Codec, seed: int, name: str) -> _Candidates:
        rng = np.random.default_rng(derive_seed(seed, PURPOSE, name))
        rows, other_rows = matched_by_class(members.labels, others.labels, MOST_ATTACKED, rng)
        images = np.concatenate([members.images[rows], others.images[other_rows]])
        labels = np.concatenate([members.labels[rows], others.labels[other_rows]])
        return cls(codec.encode(images), torch.from_numpy(labels))

    def judge(self, errors: NDArray[np.float64]) -> Membership | None:
        half = len(errors) // 2
        return roc(-errors[:half], -errors[half:]) if half else None


def _attack_server(
    task: Task, federation: Federation, unet: UNet2DModel, timesteps: tuple[int, ...]
) -> Membership | None:
    config = task.config
    silos = [federation.silo(k, config) for k in range(len(task.census))]
    # Which unlabelled images a model was trained on, no silo tells.
    few = federation.labelled is not None
    members = _joined([silo.train for silo in silos]) if few else federation.union(config)
    others = _joined([federation.test, *(silo.holdout for silo in silos)])
    codec = codec_of(config, task.spec)
    candidates = _Candidates.drawn(members, others, codec, config.run.seed, GLOBAL_MODEL)
    alphas = make_scheduler(config.recipe).alphas_cumprod
    generator = make_generator(config.run.seed, PURPOSE, GLOBAL_MODEL)
    predict = noise_predictor(unet, config.recipe, codec.bound)
    return candidates.judge(epsilon_errors(predict, candidates.images, candidates.labels, timesteps, alphas, generator))


def _attack_silos(
    exchange: Exchange, task: Task, federation: Federation, timesteps: tuple[int, ...]
) -> dict[str, Membership | None]:
    candidates = [_of_silo(task, federation, k) for k in range(len(task.census))]
    alphas = make_scheduler(task.config.recipe).alphas_cumprod
    errors: dict[str, torch.Tensor] = {}
    for t in timesteps:
        answers = _errors_at(exchange, task, candidates, t, float(alphas[t]))
        known = errors or {name: torch.zeros_like(answer) for name, answer in answers.items()}
        errors = {name: known[name] + answer for name, answer in answers.items() if name in known}
    by_name = {member.name: candidates[k] for k, member in enumerate(task.census)}
    return {name: by_name[name].judge((total / len(timesteps)).numpy()) for name, total in errors.items()}


def _of_silo(task: Task, federation: Federation, k: int) -> _Candidates:
    silo = federation.silo(k, task.config)
    others = _joined([federation.test, silo.holdout])
    codec = codec_of(task.config, task.spec)
    return _Candidates.drawn(silo.train, others, codec, task.config.run.seed, task.census.members[k].name)


def _errors_at(
    exchange: Exchange, task: Task, candidates: list[_Candidates], t: int, alpha_cumprod: float
) -> dict[str, torch.Tensor]:
    """Ask every silo about its candidates at one timestep; errors by silo, without those that do not answer."""
    census = task.census
    questions: list[Question[EpsilonAnswer]] = []
    noises = []
    for k, (member, asked) in enumerate(zip(census, candidates, strict=True)):
        generator = make_generator(task.config.run.seed, PURPOSE, member.name, t)
        x_t, noise = with_noise(asked.images, alpha_cumprod, generator)
        questions.append((k, EpsilonRequest(samples=x_t, labels=asked.labels, timestep=t, holders=census.holders)))
        noises.append(noise)
    answers = ask(exchange, questions, census, needed=0)
    errors = {k: squared_errors(answer.epsilon, noises[k]) for k, answer in answers}
    return {census.members[k].name: errors[k] for k in sorted(errors)}


def _joined(parts: list[LabelledImages]) -> LabelledImages:
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return LabelledImages(images, labels, parts[0].classes)
