"""Reading an autoencoder from a local folder: JSON and safetensors only, nothing unpickled, no code, no network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from fedsynth.latent.autoencoder import Autoencoder
from fedsynth.latent.folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolder, first_line
from fedsynth.latent.network import DiffusersNetwork, Network
from fedsynth.latent.taesd import TAESDNetwork, build_decoder, build_encoder
from fedsynth.sealed_tensors import tensor_chunks

DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes that ``_class_name`` of a diffusers folder may name. Diffusers imports its classes when they are used."""

PROBE = 32
"""Side of the image that an autoencoder is tried on."""

# Names of attention layers in files that diffusers wrote before 0.16, such as Stable Diffusion 1.5's.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(r"(?<=\.attentions\.\d\.)(query|key|value|proj_attn)(?=\.)")


def read_autoencoder(folder: Path, key: str = "autoencoder") -> Autoencoder:
    """Read an autoencoder, ready to use on the CPU in single precision.

    Args:
        folder: of diffusers' ``AutoencoderKL`` or ``AutoencoderTiny`` as ``save_pretrained`` writes it, or of a
            pipeline with one in ``vae/``; or with ``encoder.safetensors`` and ``decoder.safetensors`` of the TAESD
            family.
        key: what errors call it: the name of the setting that holds the path.

    Raises:
        UserError: it cannot be used; names key and folder, and says what to do.
    """
    return _AutoencoderFolder(folder, key).read()


class _AutoencoderFolder(ModelFolder):
    def __init__(self, folder: Path, key: str) -> None:
        pipeline = folder / "vae"
        own = pipeline if (pipeline / CONFIG_FILE).is_file() else folder
        super().__init__(own, f"{key} = '{folder}'", "the autoencoder")

    def read(self) -> Autoencoder:
        self.check_is_folder()
        if (self.folder / CONFIG_FILE).is_file():
            return self._diffusers(self.settings())
        if (self.folder / "encoder.safetensors").is_file() or (self.folder / "decoder.safetensors").is_file():
            return self._taesd()
        raise self.error(
            f"holds no autoencoder (found {self.found()}): give one of diffusers ({CONFIG_FILE} with {WEIGHTS_FILE}),"
            " or of the TAESD family (encoder.safetensors with decoder.safetensors)"
        )

    def _diffusers(self, settings: dict[str, Any]) -> Autoencoder:
        kind = settings.get("_class_name")
        if kind not in DIFFUSERS:
            raise self.error(f"'{CONFIG_FILE}' is of a {kind!r:.60}: give one of {', '.join(DIFFUSERS)}")
        network_class = getattr(diffusers, kind)
        weights = self.weights(WEIGHTS_FILE)
        weights = {_FORMER.sub(lambda found: _FORMER_NAMES[found[0]], name): value for name, value in weights.items()}
        model, changed = self.build(network_class, settings, weights)
        try:
            network = DiffusersNetwork(model)
        except (TypeError, ValueError) as error:
            raise self.misfit(error) from error
        return self._finished(
            network, kind, changed, weights, model.config["in_channels"], model.config["latent_channels"]
        )

    def _taesd(self) -> Autoencoder:
        encoder, decoder = (self.weights(f"{name}.safetensors") for name in ("encoder", "decoder"))
        try:
            first, latent = encoder["0.weight"].shape, decoder["1.weight"].shape
            width, image_channels, latent_channels = first[0], first[1], latent[1]
            with torch.device("meta"):
                parts: list[nn.Module] = [
                    build(width, image_channels, latent_channels, _pooled(weights))
                    for build, weights in ((build_encoder, encoder), (build_decoder, decoder))
                ]
            for part, weights in zip(parts, (encoder, decoder), strict=True):
                part.load_state_dict(weights, strict=True, assign=True)
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            raise self.error(
                f"the names or shapes in encoder.safetensors and decoder.safetensors are not those of the TAESD family"
                f" ({first_line(error)}): give the two files as published"
            ) from error
        weights = {
            f"{part}.{name}": value
            for part, tensors in (("encoder", encoder), ("decoder", decoder))
            for name, value in tensors.items()
        }
        return self._finished(TAESDNetwork(*parts), "TAESD", {}, weights, image_channels, latent_channels)

    def _finished(
        self,
        network: Network,
        kind: str,
        settings: dict[str, Any],
        weights: Mapping[str, torch.Tensor],
        image_channels: int,
        latent_channels: int,
    ) -> Autoencoder:
        """Try the network on one image, and give it its digest."""
        digest = hashlib.sha256(f"{kind} {json.dumps(settings, sort_keys=True)}\n".encode())
        for chunk in tensor_chunks(weights):
            digest.update(chunk)
        network.eval().float()
        factor = self._factor(network, image_channels, latent_channels)
        return Autoencoder(network, image_channels, latent_channels, factor, digest.hexdigest())

    @torch.inference_mode()
    def _factor(self, network: Network, image_channels: int, latent_channels: int) -> int:
        if image_channels not in (1, 3):
            raise self.error(f"takes images of {image_channels} channels: give an autoencoder of grey or colour images")
        try:
            latents = network.to_latents(torch.zeros(1, image_channels, PROBE, PROBE))
            images = network.to_images(latents)
        except Exception as error:  # whatever a class of diffusers makes of such settings
            raise self.error(f"does not encode an image ({first_line(error)}): {self.again}") from error
        factor = PROBE // latents.shape[-1]
        expected = (1, latent_channels, PROBE // factor, PROBE // factor)
        if latents.shape != expected or images.shape != (1, image_channels, PROBE, PROBE):
            raise self.error("what it decodes has not the size of what it encodes: give an autoencoder of images")
        if not (latents.isfinite().all() and images.isfinite().all()):
            raise self.error(f"what it makes of an image is not finite: {self.again}")
        return factor


def _pooled(weights: Mapping[str, torch.Tensor]) -> set[int]:
    """Return the places of the pooled blocks in a sequence, by the names of its weights."""
    return {int(name.partition(".")[0]) for name in weights if re.fullmatch(r"\d{1,3}\.pool\..*", name)}
