"""The auxiliary set of FedDDPM: images drawn on the server from the models that the silos upload."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedsynth.data.apportion import apportion
from fedsynth.diffusion import initial_unet
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from strategies.averaging.aggregation import check_model, shapes
from strategies.base import Task
from strategies.conversation.census import Member
from strategies.conversation.replies import sound
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


def draw_auxiliary_set(task: Task, grid: Grid, size: int) -> AuxiliarySet:
    """Have every silo upload its own model, and draw its share n_i / n of the set, labelled as its images are.

    One model is held at a time. A silo whose upload fails, or does not fit the run's network, is left out by name
    together with its share.

    Raises:
        RunError: fewer sound uploads than ``min-replies``, by default half of the silos.
    """
    census, config = task.census, task.config
    shares = torch.from_numpy(apportion(size, census.label_counts.numpy()))
    asked = [member.node_id for k, member in enumerate(census) if shares[k].any()]
    content, timeout = wire.spec_to_config(task.spec), config.exchange.reply_timeout
    requests = [wire.request(node, wire.UPLOAD, content, ttl=timeout) for node in asked]
    needed = config.exchange.min_replies
    least = -(-len(asked) // 2) if needed == "auto" else min(needed, len(asked))
    parts: dict[int, AuxiliarySet] = {}

    def draw(reply: Message) -> None:
        k = census.position(reply)
        if k is None:
            raise ValueError("nobody of the census")
        parts[k] = _draw_share(task, reply, census.members[k], shares[k])

    for _ in sound(grid.send_and_receive(requests), least, draw):
        logger.info("auxiliary set: %d of %d models sampled", len(parts), len(asked))
    ordered = [parts[k] for k in sorted(parts)]
    return AuxiliarySet(torch.cat([part.images for part in ordered]), torch.cat([part.labels for part in ordered]))


def _draw_share(task: Task, reply: Message, member: Member, counts: torch.Tensor) -> AuxiliarySet:
    config = task.config
    unet = initial_unet(config, task.spec)
    record = wire.array_record(reply, wire.ARRAYS)
    check_model(record, shapes(wire.encode_tensors(unet.state_dict())))
    unet.load_state_dict(wire.decode_tensors(record))
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    generator = make_generator(config.run.seed, "auxiliary-set", member.name)
    noise = torch.randn((len(labels), *task.spec.shape), generator=generator)
    return AuxiliarySet(torch.from_numpy(draw_images(task, unet, noise, labels, generator)), labels)
