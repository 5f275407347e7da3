"""The parts of a U-Net that a federation may exchange (FedDiffuse, de Goede et al. 2024, arXiv 2406.12575)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from fedsynth.errors import unknown_choice
from fedsynth.seeding import make_generator

_MODULES = {
    # Our choice: the embeddings of time and class are with the encoder, as they too take in the network's inputs.
    "encoder": ("conv_in", "time_embedding", "class_embedding", "down_blocks"),
    "bottleneck": ("mid_block",),
    "decoder": ("up_blocks", "conv_norm_out", "conv_out"),
}
_PART_OF = {module: part for part, modules in _MODULES.items() for module in modules}

PARTS: tuple[str, ...] = tuple(_MODULES)
"""Names of the parts, in the order in which an image passes through them."""

ENCODER, BOTTLENECK, DECODER = PARTS

EXCHANGED: Mapping[str, tuple[str, ...]] = {
    "full": PARTS,
    "usplit": PARTS,
    "ulatdec": (BOTTLENECK, DECODER),
    "udec": (DECODER,),
}
"""Method -> parts that the silos share; the others stay at home."""

HALVES: tuple[tuple[str, ...], ...] = ((ENCODER, BOTTLENECK), (DECODER,))
"""What a silo reports under ``usplit``. Our reading: the cut that leaves the two halves nearest in size."""


def part_of(parameter_name: str) -> str:
    """Return the part of a ``UNet2DModel`` that a parameter, by its state dict name, belongs to.

    Raises:
        ValueError: no parameter of such a network.
    """
    module = parameter_name.split(".")[0]
    if module not in _PART_OF:
        raise ValueError(f"parameter '{parameter_name}' belongs to no part of a U-Net")
    return _PART_OF[module]


def select_parts(state_dict: Mapping[str, torch.Tensor], parts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``UNet2DModel`` state dict that belong to ``parts``, in their order there; all parts are
    all tensors, also of another network.

    Raises:
        ValueError: an unknown part or parameter.
    """
    wanted = set(parts)
    for part in sorted(wanted.difference(PARTS)):
        raise unknown_choice("part", part, PARTS)
    if wanted.issuperset(PARTS):
        return dict(state_dict)
    return {name: tensor for name, tensor in state_dict.items() if part_of(name) in wanted}


def reported_parts(method: str, seed: int, server_round: int, silos: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return the parts that every silo of a round reports: the same draw at the server and at whoever checks it.

    Args:
        method: one of :data:`EXCHANGED`; ``usplit`` draws two groups of equal size, or one silo more for the first.
        seed: the run's.
        server_round: 1 for the first.
        silos: indices of those that train in it.
    """
    if method != "usplit" or len(silos) < len(HALVES):
        return dict.fromkeys(silos, EXCHANGED[method])
    generator = make_generator(seed, "halves", server_round)
    order = torch.randperm(len(silos), generator=generator).tolist()
    return {silos[k]: HALVES[place % len(HALVES)] for place, k in enumerate(order)}
