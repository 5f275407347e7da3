"""A trained class-conditional model as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from fedsynth.diffusion.adapters import AdaptedUNet, write_adapters
from fedsynth.diffusion.base_families import LabelledBase
from fedsynth.diffusion.codec import Codec, saved_codec
from fedsynth.diffusion.denoiser import Denoiser, LabelledTransformer, PromptedUNet
from fedsynth.diffusion.sampling import network_output, sample
from fedsynth.errors import UserError
from fedsynth.sealed import Seal
from fedsynth.spec import ImageSpec
from fedsynth.weight_files import read_weights

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel

CONDITIONS_FILE = "conditions.safetensors"


def model_seal(key: str | None = None) -> Seal:
    """Return the seal of a folder that holds a saved model; ``key`` names one among those of a silo."""
    return Seal("model", 1, key)


def save_model(
    folder: Path,
    network: Denoiser,
    scheduler: SchedulerMixin,
    codec: Codec,
    classes: Sequence[str],
    with_base: bool = True,
) -> None:
    """Write a trained network and what it was trained for as a folder of diffusers, without a seal.

    Of a base model of classes these are its transformer and scheduler; of one of prompts its U-Net and scheduler, and
    the embeddings of the prompts: with the base's other parts
    ``diffusers.StableDiffusionPipeline.from_pretrained(base, unet=...)`` draws from them. Of adapters also a file that
    its ``load_lora_weights`` takes.

    Args:
        folder: is there, and empty.
        network: on any device.
        scheduler: see :func:`fedsynth.diffusion.samplers.lasting_scheduler`.
        codec: of the run.
        classes: in label order.
        with_base: whether the U-Net is written also where adapters alone were trained: merged with them.
    """
    if isinstance(network, AdaptedUNet):
        unet = network.merged() if with_base else None
        FineTunedPipeline(unet, scheduler, classes, **codec.saved).save_pretrained(folder)
        write_adapters(folder, network)
        save_file({"conditions": network.conditions.cpu().contiguous()}, folder / CONDITIONS_FILE)
    elif isinstance(network, PromptedUNet):
        FineTunedPipeline(network.unet, scheduler, classes, **codec.saved).save_pretrained(folder)
        save_file({"conditions": network.conditions.cpu().contiguous()}, folder / CONDITIONS_FILE)
    elif isinstance(network, LabelledTransformer):
        FineTunedPipeline(None, scheduler, classes, **codec.saved, transformer=network.transformer).save_pretrained(
            folder
        )
    else:
        ClassConditionalDDPMPipeline(network, scheduler, tuple(classes), **codec.saved).save_pretrained(folder)


def load_saved_network(folder: Path) -> Denoiser:
    """Return the network of a folder that :func:`save_model` wrote, on the CPU.

    Raises:
        OSError, ValueError: it is damaged.
    """
    options = {"use_safetensors": True, "low_cpu_mem_usage": False}
    if (folder / LabelledBase.part).is_dir():
        from diffusers import DiTTransformer2DModel  # a second that other runs do without

        return LabelledTransformer(DiTTransformer2DModel.from_pretrained(folder / LabelledBase.part, **options))
    if not (folder / CONDITIONS_FILE).is_file():
        return UNet2DModel.from_pretrained(folder / "unet", **options)
    from diffusers import UNet2DConditionModel  # a second that other runs do without

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options)
    return PromptedUNet(unet, read_weights(folder / CONDITIONS_FILE)["conditions"])


class FineTunedPipeline(DiffusionPipeline):
    """What a run trained of a base model; it holds no autoencoder, and draws nothing.

    Args:
        unet: the base's U-Net with other weights; None: what was trained are adapters beside it, or a transformer.
        scheduler: noise schedule and prediction.
        classes: class names, in label order.
        codec: digest of autoencoder and scale, as :attr:`fedsynth.diffusion.codec.Codec.digest`.
        image_channels: of the images.
        transformer: that of a base model of classes with other weights, whose tables hold the run's classes and one row
            for none.
    """

    _optional_components: ClassVar[list[str]] = ["unet", "transformer"]

    def __init__(
        self,
        unet: UNet2DConditionModel | None,
        scheduler: SchedulerMixin,
        classes: Sequence[str] = (),
        codec: str = "",
        image_channels: int = 3,
        transformer: DiTTransformer2DModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, transformer=transformer)
        self.register_to_config(classes=list(classes), codec=codec, image_channels=image_channels)


@dataclass
class LabelledImagePipelineOutput(BaseOutput):
    """Result of a call.

    Attributes:
        images: PIL images, or float32 (N, H, W, C) from 0 to 1, as was asked.
        labels: class index of each image (N,).
    """

    images: list[Image.Image] | NDArray[np.float32]
    labels: torch.Tensor


class ClassConditionalDDPMPipeline(DiffusionPipeline):
    """Draws labelled images from a U-Net with class embeddings; saved and loaded like any diffusers pipeline.

    Args:
        unet: denoising network with ``num_class_embeds`` classes.
        scheduler: scheduler whose configuration is saved beside the weights.
        classes: class names, in label order.
        codec: what the network sees of an image, as :attr:`fedsynth.diffusion.codec.Codec.saved` has it.
        image_channels: of the images, where the codec does not say.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        classes: tuple[str, ...] = (),
        codec: str = "pixels",
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(classes=list(classes), codec=codec)
        if image_channels is not None:
            self.register_to_config(image_channels=image_channels)

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int | str] | torch.Tensor,
        generator: torch.Generator | None = None,
        num_inference_steps: int = 50,
        batch_size: int = 256,
        autoencoder: str | Path = "",
        output_type: str = "pil",
    ) -> LabelledImagePipelineOutput:
        """Draw one image per label.

        Args:
            labels: class indices or names (N,).
            generator: CPU generator, for reproducible images; None draws other images at every call.
            num_inference_steps: noise levels visited.
            batch_size: images evaluated at a time.
            autoencoder: folder of the autoencoder, for a model of latents.
            output_type: of the images, as everywhere in diffusers: ``pil``, or ``np`` for float32 (N, H, W, C) from 0
                to 1.

        Raises:
            UserError: another output type, a name that is not among the model's classes, an index out of range, or not
                the autoencoder that the model was trained with.
        """
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type = '{output_type}': must be 'pil' or 'np'")
        codec = self._codec(autoencoder)
        indices = torch.tensor([self._index(label) for label in labels])
        config = self.unet.config
        shape = (len(indices), config.in_channels, config.sample_size, config.sample_size)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        noise = torch.randn(shape, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        predict = network_output(self.unet, batch_size)
        pixels = codec.decode(sample(predict, self.scheduler, noise, indices, generator))
        if output_type == "np":
            return LabelledImagePipelineOutput(images=np.divide(pixels, 255, dtype=np.float32), labels=indices)
        images = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels]
        return LabelledImagePipelineOutput(images=images, labels=indices)

    def _codec(self, autoencoder: str | Path) -> Codec:
        config = self.unet.config
        grid = ImageSpec(config.in_channels, config.sample_size, tuple(self.config.classes))
        return saved_codec(self.config, grid, autoencoder)

    def _index(self, label: int | str | torch.Tensor) -> int:
        names = list(self.config.classes)
        if isinstance(label, str):
            if label not in names:
                raise UserError(f"label '{label}': must be one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= int(label) < self.unet.config.num_class_embeds:
            raise UserError(f"label {int(label)}: must be in 0 … {self.unet.config.num_class_embeds - 1}")
        return int(label)
