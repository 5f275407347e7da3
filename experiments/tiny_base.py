"""A base model small enough for a CPU, of the same parts as Stable Diffusion 1.5: ``python -m experiments.tiny_base``.

Its weights are random unless somebody trains them: it shows that everything works, and no picture. Needs
``pip install 'fedsynth[base]'``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

TOKENS = 77
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_,.'"


def build(seed: int = 0, width: int = 16, latent_channels: int = 4, text_width: int = 32) -> StableDiffusionPipeline:
    """Return the pipeline; its autoencoder halves images twice.

    Args:
        seed: of the weights.
        width: channels of the U-Net's first level, a multiple of 8.
        latent_channels: of the autoencoder.
        text_width: numbers in an embedding of a token.
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
            bos_token_id=tokeniser.bos_token_id,
            eos_token_id=tokeniser.eos_token_id,
            pad_token_id=tokeniser.pad_token_id,
        )
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16, 16),
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
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
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


def main() -> None:
    """Write a folder for ``--base-model``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net's first level")
    options = parser.parse_args()
    build(options.seed, options.width).save_pretrained(options.out)
    print(json.dumps({"base-model": str(options.out)}))


if __name__ == "__main__":
    main()
