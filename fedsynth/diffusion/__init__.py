"""Class-conditional denoising diffusion models (Ho et al. 2020, arXiv 2006.11239) on diffusers."""

from fedsynth.diffusion.augmentation import exact_variants
from fedsynth.diffusion.base_model import settle_base_model
from fedsynth.diffusion.codec import AUTOENCODER, Codec, EncodedImages, codec_of, latents_kept_in, make_codec
from fedsynth.diffusion.early_stopping import MIN_HELD_OUT, HeldOutLoss, check_steps, train_early_stopping
from fedsynth.diffusion.images import to_model_range, to_uint8
from fedsynth.diffusion.initial import (
    count_in_adapters,
    count_parameters,
    exchanged_shapes,
    initial_unet,
    network_settings,
    pick_device,
    training_bytes,
)
from fedsynth.diffusion.parts import PARTS, part_of, select_parts
from fedsynth.diffusion.pipeline import ClassConditionalDDPMPipeline, load_saved_network, model_seal, save_model
from fedsynth.diffusion.public_start import public_start, start_of
from fedsynth.diffusion.samplers import (
    SAMPLERS,
    forget_used_outputs,
    lasting_scheduler,
    make_scheduler,
    noise_schedule,
    restore_sampler,
    sampler_state,
)
from fedsynth.diffusion.sampling import draw_initial_noise, noise_predictor, sample
from fedsynth.diffusion.training import TrainingState, loss_curve, train
from fedsynth.diffusion.unet import PRESETS, build_unet

__all__ = [
    "AUTOENCODER",
    "MIN_HELD_OUT",
    "PARTS",
    "PRESETS",
    "SAMPLERS",
    "ClassConditionalDDPMPipeline",
    "Codec",
    "EncodedImages",
    "HeldOutLoss",
    "TrainingState",
    "build_unet",
    "check_steps",
    "codec_of",
    "count_in_adapters",
    "count_parameters",
    "draw_initial_noise",
    "exact_variants",
    "exchanged_shapes",
    "forget_used_outputs",
    "initial_unet",
    "lasting_scheduler",
    "latents_kept_in",
    "load_saved_network",
    "loss_curve",
    "make_codec",
    "make_scheduler",
    "model_seal",
    "network_settings",
    "noise_predictor",
    "noise_schedule",
    "part_of",
    "pick_device",
    "public_start",
    "restore_sampler",
    "sample",
    "sampler_state",
    "save_model",
    "select_parts",
    "settle_base_model",
    "start_of",
    "to_model_range",
    "to_uint8",
    "train",
    "train_early_stopping",
    "training_bytes",
]
