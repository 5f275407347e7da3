"""A trained class-conditional model as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from PIL import Image

from fedsynth.diffusion.codec import Codec, codec_of_grid
from fedsynth.diffusion.sampling import network_output, sample
from fedsynth.errors import UserError
from fedsynth.sealed import Seal
from fedsynth.spec import ImageSpec


def model_seal(key: str | None = None) -> Seal:
    """Return the seal of a folder that holds a saved model; ``key`` names one among those of a silo."""
    return Seal("model", 1, key)


@dataclass
class LabelledImagePipelineOutput(BaseOutput):
    """Result of a call.

    Attributes:
        images: PIL images.
        labels: class index of each image (N,).
    """

    images: list[Image.Image]
    labels: torch.Tensor


class ClassConditionalDDPMPipeline(DiffusionPipeline):
    """Draws labelled images from a U-Net with class embeddings; saved and loaded like any diffusers pipeline.

    Args:
        unet: denoising network with ``num_class_embeds`` classes.
        scheduler: scheduler whose configuration is saved beside the weights.
        classes: class names, in label order.
        codec: name of what the network sees of an image, see :mod:`fedsynth.diffusion.codec`.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, classes: tuple[str, ...] = (), codec: str = "pixels"
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(classes=list(classes), codec=codec)

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int | str] | torch.Tensor,
        generator: torch.Generator | None = None,
        num_inference_steps: int = 50,
        batch_size: int = 256,
    ) -> LabelledImagePipelineOutput:
        """Draw one image per label.

        Args:
            labels: class indices or names (N,).
            generator: CPU generator, for reproducible images; None draws other images at every call.
            num_inference_steps: noise levels visited.
            batch_size: images evaluated at a time.

        Raises:
            UserError: a name that is not among the model's classes, or an index out of range.
        """
        indices = torch.tensor([self._index(label) for label in labels])
        config = self.unet.config
        shape = (len(indices), config.in_channels, config.sample_size, config.sample_size)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        noise = torch.randn(shape, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        predict = network_output(self.unet, batch_size)
        pixels = self._codec().decode(sample(predict, self.scheduler, noise, indices, generator))
        images = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels]
        return LabelledImagePipelineOutput(images=images, labels=indices)

    def _codec(self) -> Codec:
        config = self.unet.config
        grid = ImageSpec(config.in_channels, config.sample_size, tuple(self.config.classes))
        return codec_of_grid(self.config.codec, grid)

    def _index(self, label: int | str | torch.Tensor) -> int:
        names = list(self.config.classes)
        if isinstance(label, str):
            if label not in names:
                raise UserError(f"label '{label}': must be one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= int(label) < self.unet.config.num_class_embeds:
            raise UserError(f"label {int(label)}: must be in 0 … {self.unet.config.num_class_embeds - 1}")
        return int(label)
