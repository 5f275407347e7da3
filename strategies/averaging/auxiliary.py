"""The auxiliary set of FedDDPM: images drawn on the server from the models that the silos upload."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import torch

from fedsynth.data.apportion import apportion
from fedsynth.diffusion import codec_of, initial_unet
from fedsynth.errors import RunError
from fedsynth.messages import MessageError, UploadAnswer, UploadRequest, transport
from fedsynth.seeding import make_generator
from strategies.averaging.aggregation import check_model, shapes
from strategies.base import Task
from strategies.conversation.ask import ask, replies_needed
from strategies.conversation.census import Member
from strategies.conversation.exchange import Exchange
from strategies.global_model import draw_images

logger = logging.getLogger("fedsynth")


@dataclass
class AuxiliarySet:
    """Labelled images that stand for the data of all silos.

    Attributes:
        images: uint8 (n, H, W, C).
        labels: int64 (n,).
    """

    images: torch.Tensor
    labels: torch.Tensor


def draw_auxiliary_set(task: Task, exchange: Exchange, size: int) -> AuxiliarySet:
    """Have every silo upload its own model, and draw its share n_i / n of the set, labelled as its images are.

    One model is held at a time. A silo whose upload fails, does not fit the run's network, or cannot be drawn from is
    left out by name together with its share.

    Raises:
        RunError: fewer usable uploads than ``min-replies``, by default half of the silos.
    """
    census = task.census
    shares = torch.from_numpy(apportion(size, census.label_counts.numpy()))
    asked = [k for k in range(len(census)) if shares[k].any()]
    expected = shapes(transport.encode_tensors(initial_unet(task.config, task.spec).state_dict()))

    parts: dict[int, AuxiliarySet] = {}

    def check(silo: int, answer: UploadAnswer) -> None:
        check_model(answer.arrays, expected)
        try:
            parts[silo] = _draw_share(task, answer, census.members[silo], shares[silo])
        except RunError as error:
            raise MessageError(str(error)) from error
        logger.info("auxiliary set: %d of %d models sampled", len(parts), len(asked))

    questions = [(k, UploadRequest(spec=task.spec)) for k in asked]
    needed = replies_needed(task.config.exchange.min_replies, len(asked), "half")
    # Keeps no answer while the next is read.
    deque(ask(exchange, questions, census, needed=needed, check=check), maxlen=0)
    ordered = [parts[k] for k in sorted(parts)]
    return AuxiliarySet(torch.cat([part.images for part in ordered]), torch.cat([part.labels for part in ordered]))


def _draw_share(task: Task, answer: UploadAnswer, member: Member, counts: torch.Tensor) -> AuxiliarySet:
    unet = initial_unet(task.config, task.spec)
    unet.load_state_dict(transport.decode_tensors(answer.arrays))
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    generator = make_generator(task.config.run.seed, "auxiliary-set", member.name)
    noise = torch.randn((len(labels), *codec_of(task.config, task.spec).shape), generator=generator)
    return AuxiliarySet(torch.from_numpy(draw_images(task, unet, noise, labels, generator)), labels)
