"""A silo's part in ``dp-sum``: its images' gradients and its share of the noise, under masks."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from clients.context import SiloContext
from clients.silo_cache import SiloCache
from clients.summing import SumQuestion
from clients.told_counts import told_number
from fedsynth.config.methods import DPSumSettings
from fedsynth.diffusion import EncodedImages, initial_unet, pick_device
from fedsynth.errors import UserError
from fedsynth.messages import GradientRequest, MaskedAnswer, transport
from fedsynth.privacy.dp_training import SummedStep, check_delta, mechanism_of, noised_whole_sum
from fedsynth.privacy.summed_noise import SummedNoise
from fedsynth.privacy.sums import to_ring

_networks: SiloCache[UNet2DModel] = SiloCache()


def gradient(request: GradientRequest, silo: SiloContext) -> MaskedAnswer:
    """Return the sum of the own images' clipped gradients with a share of the noise, masked.

    The question is checked as a whole, and what its sum costs is in the silo's account, before anything is computed.
    A question that comes again, since the server was interrupted or a sum failed, is answered with another sample and
    other noise, and costs again.

    Raises:
        UserError: an answer would not be hidden, see :mod:`fedsynth.privacy.sums`; the noise would not be enough; or
            the weights are not those of the run's network.
        PolicyError: the policy's budget is spent, it reckons with more colluders, or there is no more time.
    """
    config, settings = silo.config, silo.config.settings
    if not isinstance(settings, DPSumSettings) or not config.private:
        raise UserError("gradients are told in runs of strategy = 'dp-sum' with a dp-epsilon only")
    if request.server_round > config.privacy.dp_steps:
        raise UserError(f"round {request.server_round}: the noise is for dp-steps = {config.privacy.dp_steps} in all")
    question = SumQuestion(request, request.server_round, silo)
    unet = _network(request, silo)
    check_delta(config, told_number(silo, request.spec))
    mechanism = mechanism_of(config)
    noise = SummedNoise(mechanism.noise_multiplier, len(question.participants), settings.dp_colluders, request.norm)
    images = silo.images(request.spec).train
    keys = config.privacy
    step = SummedStep(noise, keys.dp_sampling_rate, keys.dp_clip, keys.dp_multiplicity)
    with silo.explained_state():
        silo.before_summed_step(request.spec)(
            noise.towards_server(step.sampling_rate), noise.towards_public(step.sampling_rate)
        )
    with silo.keeping_latents(request.spec) as codec:
        encoded = EncodedImages(images.images, codec, config.training.augmentations())
        numbers = noised_whole_sum(unet, config.recipe, encoded, torch.from_numpy(images.labels), step)
    silo.check_deadline()
    return question.answer(to_ring(numbers))


def _network(request: GradientRequest, silo: SiloContext) -> UNet2DModel:
    """Return the run's network with the weights that were sent; what it was built from stays for the next round."""
    device = pick_device(silo.config.run.device)
    unet = _networks.get(silo.run_and_node, lambda: initial_unet(silo.config, request.spec).to(device))
    weights = transport.decode_tensors(request.arrays)
    expected = {name: value.shape for name, value in unet.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise UserError("weights do not fit the silo's network: give server and silos the same fedsynth")
    unet.load_state_dict(weights)
    return unet
