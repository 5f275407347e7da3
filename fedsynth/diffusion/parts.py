"""The parts of a U-Net that a federation may exchange (FedDiffuse, de Goede et al. 2024, arXiv 2406.12575)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from fedsynth.errors import unknown_choice

_MODULES = {
    # Our choice: the embeddings of time and class are with the encoder, as they too take in the network's inputs.
    "encoder": ("conv_in", "time_embedding", "class_embedding", "down_blocks"),
    "bottleneck": ("mid_block",),
    "decoder": ("up_blocks", "conv_norm_out", "conv_out"),
}
_PART_OF = {module: part for part, modules in _MODULES.items() for module in modules}

PARTS: tuple[str, ...] = tuple(_MODULES)
"""Names of the parts, in the order in which an image passes through them."""


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
    """Return the tensors of a ``UNet2DModel`` state dict that belong to ``parts``, in their order there.

    Raises:
        ValueError: an unknown part or parameter.
    """
    wanted = set(parts)
    for part in sorted(wanted.difference(PARTS)):
        raise unknown_choice("part", part, PARTS)
    return {name: tensor for name, tensor in state_dict.items() if part_of(name) in wanted}
