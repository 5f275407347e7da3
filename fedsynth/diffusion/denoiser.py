"""Denoising networks of base models, asked as the run's own class-conditional networks are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import UNet2DModel
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel  # which takes a while, and most runs have none


class PromptedUNet(nn.Module):
    """A U-Net that attends to a prompt, with one prompt a class: ``network(x, t, class_labels=rows).sample``.

    Its state dict, and so what is trained, saved or sent of it, is that of the U-Net alone.

    Args:
        unet: as Stable Diffusion 1.x and 2.x have it.
        conditions: embeddings of every class's prompt (num_classes, L, D), never trained.
    """

    conditions: torch.Tensor

    def __init__(self, unet: UNet2DConditionModel, conditions: torch.Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("conditions", conditions, persistent=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """The U-Net's settings."""
        settings: Mapping[str, Any] = self.unet.config
        return settings

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | int, class_labels: torch.Tensor) -> Any:
        """Return diffusers' output, whose ``sample`` (n, c, h, w) is the prediction.

        Args:
            sample: x_t (n, c, h, w).
            timestep: one, or one a sample (n,).
            class_labels: int64 (n,).
        """
        return self.unet(sample, timestep, encoder_hidden_states=self.conditions[class_labels])

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the U-Net's weights by diffusers' names."""
        weights: dict[str, Any] = self.unet.state_dict(*args, **options)
        return weights

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the U-Net's weights by diffusers' names."""
        return self.unet.load_state_dict(state_dict, strict, assign)


Denoiser: TypeAlias = UNet2DModel | PromptedUNet
"""The network of a run: class embeddings of its own, or prompts of a base model."""


def num_classes(network: Denoiser) -> int:
    """Return how many classes a network can be asked about."""
    if isinstance(network, PromptedUNet):
        return len(network.conditions)
    return int(network.config["num_class_embeds"])
