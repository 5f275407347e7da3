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
        nothing: embeddings of the empty prompt (L, D), which stands behind the classes as another; None: not asked.

    Attributes:
        guidance: w >= 1 of :meth:`guided`.
        guided_from_base: whether the prediction for the empty prompt is the base model's, see :meth:`of_nothing`.
    """

    _table: torch.Tensor

    def __init__(
        self, unet: UNet2DConditionModel, conditions: torch.Tensor, nothing: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self.num_classes = len(conditions)
        rows = conditions if nothing is None else torch.cat([conditions, nothing[None]])
        self.register_buffer("_table", rows, persistent=False)
        self.guidance = 1.0
        self.guided_from_base = False

    @property
    def conditions(self) -> torch.Tensor:
        """Embeddings of every class's prompt (num_classes, L, D)."""
        return self._table[: self.num_classes]

    @property
    def nothing(self) -> torch.Tensor | None:
        """Embeddings of the empty prompt (L, D), if the network has them."""
        return self._table[self.num_classes] if len(self._table) > self.num_classes else None

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
            class_labels: int64 (n,); the number of classes stands for the empty prompt.
        """
        return self.unet(sample, timestep, encoder_hidden_states=self._table[class_labels])

    def guided(self, sample: torch.Tensor, timestep: torch.Tensor | int, class_labels: torch.Tensor) -> torch.Tensor:
        """Return ε_∅ + w (ε_y - ε_∅), classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, Eq. 6 with their
        w + 1 for w); with w = 1 the network's own prediction, bit for bit.

        Whatever the network predicts for ε: all are the same under weights that sum to 1. Arguments as of
        :meth:`forward`.
        """
        predicted: torch.Tensor = self(sample, timestep, class_labels).sample
        if self.guidance == 1:
            return predicted
        nothing = self.of_nothing(sample, timestep)
        return nothing + self.guidance * (predicted - nothing)

    def of_nothing(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """Return the prediction for the empty prompt (n, c, h, w)."""
        labels = torch.full((len(sample),), self.num_classes, device=sample.device)
        predicted: torch.Tensor = self(sample, timestep, labels).sample
        return predicted

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
        return network.num_classes
    return int(network.config["num_class_embeds"])
