"""What a run's configuration says about networks and devices."""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DModel

from fedsynth.adapter_shapes import Shape, adapted_layers, factor_shapes
from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.config.methods import DPSumSettings
from fedsynth.config.recipe import PAPER, recipe_name
from fedsynth.diffusion.adapters import adapters_of, chosen_adapters
from fedsynth.diffusion.base_model import base_model
from fedsynth.diffusion.codec import Codec, codec_of
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.diffusion.public_start import start_from_public
from fedsynth.diffusion.unet import PRESETS, build_unet, grid_preset, paper_preset
from fedsynth.errors import UserError
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

_SINGLE_BYTES = 4


def initial_unet(config: RunConfig, spec: ImageSpec) -> Denoiser:
    """Build the initial U-Net of a run, on the CPU; every silo and every method starts from the same weights.

    They follow from the seed, or are those of the public model of ``init-from`` or of ``base-model``.

    Raises:
        UserError: images that it cannot halve, or a public model that is none of the run, see
            :func:`fedsynth.diffusion.public_start.start_from_public` and :mod:`fedsynth.diffusion.base_model`.
    """
    codec = codec_of(config, spec)
    if (base := base_model(config)) is not None:
        base.check_train(config.model.train)
        asks_nothing = config.sampling.guidance > 1 or config.training.label_dropout > 0
        network = base.network(config.model.prompt, codec, adapters_of(config), asks_nothing, config.run.seed)
        network.guidance = config.sampling.guidance
        network.guided_from_base = config.sampling.guidance_source == "base"
        return network
    return start_from_public(_initial_unet(config, codec), config, codec)


def network_settings(config: RunConfig, spec: ImageSpec) -> dict[str, Scalar]:
    """Return codec and network of a run by configuration key, as they are when the images are known."""
    codec = codec_of(config, spec)
    if config.model.base_model:
        return {"codec": codec.name}
    preset, channels, layers = _preset(config, codec), config.model.channels(), config.model.layers_per_block
    shape = PRESETS[preset]
    return {
        "codec": codec.name,
        "model": preset,
        "block-out-channels": ",".join(map(str, channels or shape.block_out_channels)),
        "layers-per-block": shape.layers_per_block if layers == AUTO else layers,
    }


def _preset(config: RunConfig, codec: Codec) -> str:
    if config.model.model != AUTO:
        return config.model.model
    if isinstance(config.settings, DPSumSettings):
        # The noise of a private step grows with the number of weights, and what they learn in few steps does not.
        return "dp-small"
    of_paper = recipe_name(config.to_run_config()) == PAPER
    return paper_preset(config.data.dataset) if of_paper else grid_preset(codec.grid)


def _initial_unet(config: RunConfig, codec: Codec) -> UNet2DModel:
    preset, layers = _preset(config, codec), config.model.layers_per_block
    generator = make_generator(config.run.seed, "initial-weights")
    channels = config.model.channels()
    return build_unet(preset, codec.grid, generator, channels, None if layers == AUTO else layers)


def count_parameters(config: RunConfig, spec: ImageSpec) -> int:
    """Return the number of weights of a run's U-Net, without room for any of them."""
    if (base := base_model(config)) is not None:
        return sum(map(math.prod, base.shapes_for(len(spec.classes)).values()))
    codec = codec_of(config, spec)  # an autoencoder has weights to be read
    with torch.device("meta"):
        return sum(weights.numel() for weights in _initial_unet(config, codec).parameters())


def count_in_adapters(config: RunConfig, spec: ImageSpec) -> int:
    """Return the numbers that a run trains in adapters beside its U-Net's weights; 0: it trains the weights."""
    if chosen_adapters(config) is None:
        return 0
    return sum(map(math.prod, exchanged_shapes(config, spec).values()))


def exchanged_shapes(config: RunConfig, spec: ImageSpec) -> dict[str, Shape]:
    """Return by name the shapes of what a run trains, and averages where it does: its network's state dict."""
    if (base := base_model(config)) is None:
        codec = codec_of(config, spec)
        with torch.device("meta"):
            return {name: tuple(values.shape) for name, values in _initial_unet(config, codec).state_dict().items()}
    if (adapters := chosen_adapters(config)) is None:
        return base.shapes_for(len(spec.classes))
    return factor_shapes(adapted_layers(base.shapes, adapters.targets), adapters.rank, adapters.frozen_a)


def training_bytes(config: RunConfig, spec: ImageSpec) -> int:
    """Return the bytes that a silo's training holds whatever its batches: the network, and of what is trained the
    gradients, two moments of the optimiser and the weight average, all in single precision.

    Not in it: what a step computes on the way, which grows with the batch; autoencoder and images.
    """
    weights, trained = count_parameters(config, spec), count_in_adapters(config, spec)
    if (adapters := chosen_adapters(config)) is not None and (base := base_model(config)) is not None:
        factors = factor_shapes(adapted_layers(base.shapes, adapters.targets), adapters.rank)
        weights += sum(map(math.prod, factors.values()))
    return _SINGLE_BYTES * (weights + 4 * (trained or weights))


def pick_device(wanted: str) -> torch.device:
    """Turn ``device`` of the config into a device; ``auto`` takes CUDA where this process sees it.

    Raises:
        UserError: CUDA asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': this process sees no CUDA device; use device = 'cpu', or give it a GPU share")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
