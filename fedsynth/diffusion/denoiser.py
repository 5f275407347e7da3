"""Denoising networks of base models, asked as the run's own class-conditional networks are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import UNet2DModel
from torch import nn

if TYPE_CHECKING:
    # Which take a while, and most runs have none.
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel


class GuidedDenoiser(nn.Module):
    """A network of a base model that can be asked about no class, too: ``network(x, t, class_labels=rows).sample``.

    Args:
        num_classes: of the run; as a label, the number stands for no class.

    Attributes:
        num_classes: the same.
        guidance: w >= 1 of :meth:`guided`.
        guided_from_base: whether the prediction for no class is the base model's, see :meth:`of_nothing`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.guidance = 1.0
        self.guided_from_base = False

    def guided(self, sample: torch.Tensor, timestep: torch.Tensor | int, class_labels: torch.Tensor) -> torch.Tensor:
        """Return ε_∅ + w (ε_y - ε_∅), classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, Eq. 6 with their
        w + 1 for w); with w = 1 the network's own prediction, bit for bit.

        Whatever the network predicts for ε: all are the same under weights that sum to 1.

        Args:
            sample: x_t (n, c, h, w).
            timestep: one, or one a sample (n,).
            class_labels: int64 (n,).
        """
        predicted: torch.Tensor = self(sample, timestep, class_labels).sample
        if self.guidance == 1:
            return predicted
        nothing = self.of_nothing(sample, timestep)
        return nothing + self.guidance * (predicted - nothing)

    def of_nothing(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """Return the prediction for no class (n, c, h, w)."""
        labels = torch.full((len(sample),), self.num_classes, device=sample.device)
        predicted: torch.Tensor = self(sample, timestep, labels).sample
        return predicted


class PromptedUNet(GuidedDenoiser):
    """A U-Net that attends to a prompt, with one prompt a class.

    Its state dict, and so what is trained, saved or sent of it, is that of the U-Net alone.

    Args:
        unet: as Stable Diffusion 1.x and 2.x have it.
        conditions: embeddings of every class's prompt (num_classes, L, D), never trained.
        nothing: embeddings of the empty prompt (L, D), which stands behind the classes as another; None: not asked.
    """

    _table: torch.Tensor

    def __init__(
        self, unet: UNet2DConditionModel, conditions: torch.Tensor, nothing: torch.Tensor | None = None
    ) -> None:
        super().__init__(len(conditions))
        self.unet = unet
        rows = conditions if nothing is None else torch.cat([conditions, nothing[None]])
        self.register_buffer("_table", rows, persistent=False)

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

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the U-Net's weights by diffusers' names."""
        weights: dict[str, Any] = self.unet.state_dict(*args, **options)
        return weights

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the U-Net's weights by diffusers' names."""
        return self.unet.load_state_dict(state_dict, strict, assign)


class LabelledTransformer(GuidedDenoiser):
    """A diffusion transformer with a table of classes (DiT, Peebles & Xie 2023, arXiv 2212.09748).

    Of a network that predicts a variance, too, the mean alone is trained and asked for. Its state dict is that of the
    transformer.

    Args:
        transformer: whose tables hold the run's classes and one row more, for none. Labels are dropped by the training,
            not by the transformer, which would draw from torch's own generator.
    """

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__(int(transformer.config["num_embeds_ada_norm"]))
        self.transformer = transformer
        self._channels = int(transformer.config["in_channels"])
        for block in transformer.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @property
    def config(self) -> Mapping[str, Any]:
        """The transformer's settings."""
        settings: Mapping[str, Any] = self.transformer.config
        return settings

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | int, class_labels: torch.Tensor) -> Any:
        """Return diffusers' output, whose ``sample`` (n, c, h, w) is the prediction; arguments as of
        :meth:`GuidedDenoiser.guided`.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        output = self.transformer(sample, timestep=timesteps, class_labels=class_labels)
        output.sample = output.sample[:, : self._channels]
        return output

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the transformer's weights by diffusers' names."""
        weights: dict[str, Any] = self.transformer.state_dict(*args, **options)
        return weights

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the transformer's weights by diffusers' names."""
        return self.transformer.load_state_dict(state_dict, strict, assign)


Denoiser: TypeAlias = UNet2DModel | PromptedUNet | LabelledTransformer
"""The network of a run: class embeddings of its own, or prompts or classes of a base model."""


def num_classes(network: Denoiser) -> int:
    """Return how many classes a network can be asked about."""
    if isinstance(network, GuidedDenoiser):
        return network.num_classes
    return int(network.config["num_class_embeds"])
