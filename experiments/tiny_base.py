"""A base model small enough for a CPU, of the same parts as Stable Diffusion 1.5: ``python -m experiments.tiny_base``.

Its weights are random: it shows that everything works, and no picture. With ``--data-root`` autoencoder, U-Net and text
encoder are trained at 32×32 on two public sets that no silo holds: CIFAR-10's photographs in that folder, and
scikit-learn's digits, enlarged; a second folder, ``OUT-untrained``, has the same autoencoder beside random weights, to
tell what their training is worth. Needs ``pip install 'fedsynth[base]'``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn.functional import interpolate, mse_loss

from fedsynth.data import load_dataset
from fedsynth.progress import followed

TOKENS = 24
SIDE, BATCH = 32, 32
TRAINED = {"latent_channels": 8, "coding": (24, 48, 48)}
"""What a base that is trained has besides."""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_,.'"


def build(
    seed: int = 0,
    width: int = 16,
    latent_channels: int = 4,
    text_width: int = 32,
    coding: tuple[int, ...] = (8, 16, 16),
) -> StableDiffusionPipeline:
    """Return the pipeline; its autoencoder halves images twice.

    Args:
        seed: of the weights.
        width: channels of the U-Net's first level, a multiple of 8.
        latent_channels: of the autoencoder.
        text_width: numbers in an embedding of a token.
        coding: channels of the autoencoder's three levels.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokeniser = _tokeniser()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokeniser),
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            # Otherwise prompts that differ in one token look nearly alike, and few thousand steps teach no class.
            initializer_factor=30.0,
            bos_token_id=tokeniser.bos_token_id,
            eos_token_id=tokeniser.eos_token_id,
            pad_token_id=tokeniser.pad_token_id,
        )
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=coding,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            latent_channels=latent_channels,
        ),
        text_encoder=text,
        tokenizer=tokeniser,
        unet=UNet2DConditionModel(
            sample_size=4,  # latents of 16x16 images, which diffusers' own pipeline draws unless it is told otherwise
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=(width, 2 * width),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=text_width,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _tokeniser():  # type: ignore[no-untyped-def]
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    # No merges: every letter is a token.
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=TOKENS
    )


def public_images(data_root: Path) -> tuple[torch.Tensor, list[str]]:
    """Return the two sets' training images (n, 3, 32, 32) in [-1, 1], and the prompt of each."""
    photographs, digits = load_dataset("cifar10", data_root)[0], load_dataset("digits")[0]
    enlarged = [np.asarray(Image.fromarray(image[..., 0]).resize((SIDE, SIDE), 3)) for image in digits.images]
    images = np.concatenate([photographs.images, np.repeat(np.stack(enlarged)[..., None], 3, -1)])
    prompts = [f"a photo of {one.classes[label]}" for one in (photographs, digits) for label in one.labels]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, prompts


def train_autoencoder(
    autoencoder: AutoencoderKL, images: torch.Tensor, steps: int, generator: torch.Generator
) -> float:
    """Train on halves, wholes and inverses of the images, set the scale of latents, and return the last mean error.

    The loss is the squared and absolute error of the image, and a millionth of the divergence from the normal
    distribution (as in Rombach et al. 2022, arXiv 2112.10752, without their discriminator).
    """
    optimiser, errors = torch.optim.AdamW(autoencoder.parameters(), 2e-3), list[float]()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, max(steps, 2))
    for _ in followed(range(steps), "autoencoder:", print):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        if torch.rand((), generator=generator) < 0.5:
            top, left = torch.randint(SIDE // 2, (2,), generator=generator).tolist()
            batch = interpolate(batch[..., top : top + SIDE // 2, left : left + SIDE // 2], scale_factor=2.0)
        batch = batch * (1 if torch.rand((), generator=generator) < 0.5 else -1)
        found = autoencoder.encode(batch).latent_dist
        apart = autoencoder.decode(found.sample(generator)).sample - batch
        error = apart.square().mean()
        optimiser.zero_grad()
        (error + 0.1 * apart.abs().mean() + 1e-6 * found.kl().mean()).backward()
        optimiser.step()
        schedule.step()
        errors.append(float(error))
    latents = encoded(autoencoder, images[torch.randperm(len(images), generator=generator)[:1000]])
    autoencoder.register_to_config(scaling_factor=1 / float(latents.std()))
    return fmean(errors[-100:])


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Return the means of the images' latents, not scaled."""
    return torch.cat([autoencoder.encode(batch).latent_dist.mean for batch in images.split(256)])


def train_unet(
    pipeline: StableDiffusionPipeline,
    images: torch.Tensor,
    prompts: Sequence[str],
    steps: int,
    generator: torch.Generator,
) -> float:
    """Train ε by prompt, a tenth with none, keep the mean of the weights, and return the last mean loss.

    The text encoder is trained with it (as in Rombach et al. 2022): by random embeddings a network this small learns no
    class.
    """
    autoencoder, unet, scheduler = pipeline.vae, pipeline.unet, pipeline.scheduler
    latents = encoded(autoencoder, images) * autoencoder.config.scaling_factor
    known = sorted({*prompts, ""})
    tokens = pipeline.tokenizer(known, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    rows, nothing = torch.tensor([known.index(prompt) for prompt in prompts]), known.index("")
    trained = [*unet.parameters(), *pipeline.text_encoder.parameters()]
    optimiser, average, losses = torch.optim.AdamW(trained, 1e-3), EMAModel(trained, 0.995), list[float]()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, max(steps, 2))
    # All prompts alike: digits are a quarter of the images, and differ in less than photographs do.
    often = 1 / torch.bincount(rows)[rows]
    for _ in followed(range(steps), "U-Net:", print):
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        labels = torch.where(torch.rand(BATCH, generator=generator) < 0.1, nothing, rows[chosen])
        noise = torch.randn(latents[chosen].shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        embeddings = pipeline.text_encoder(tokens)[0][labels]
        predicted = unet(scheduler.add_noise(latents[chosen], noise, t), t, embeddings).sample
        loss = mse_loss(predicted, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.step(trained)
        losses.append(float(loss))
    average.copy_to(trained)
    return fmean(losses[-100:])


def main() -> None:
    """Write a folder for ``--base-model``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net's first level")
    parser.add_argument("--data-root", type=Path, help="CIFAR-10: train it")
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=6000, help="of the U-Net")
    options = parser.parse_args()
    wide: dict[str, Any] = {} if options.data_root is None else TRAINED
    pipeline = build(options.seed, options.width, **wide)
    said: dict[str, Any] = {"base-model": str(options.out)}
    if options.data_root is not None:
        images, prompts = public_images(options.data_root)
        generators = [torch.Generator().manual_seed(options.seed + stage) for stage in range(2)]
        said["autoencoder-error"] = train_autoencoder(pipeline.vae, images, options.autoencoder_steps, generators[0])
        pipeline.save_pretrained(options.out.with_name(f"{options.out.name}-untrained"))
        said["unet-loss"] = train_unet(pipeline, images, prompts, options.steps, generators[1])
    pipeline.save_pretrained(options.out)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
