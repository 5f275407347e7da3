"""Reading an autoencoder from a local folder: JSON and safetensors only, nothing unpickled, no code, no network."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from fedsynth.errors import UserError
from fedsynth.files import parse_json
from fedsynth.latent.autoencoder import Autoencoder
from fedsynth.latent.network import DiffusersNetwork, Network
from fedsynth.latent.taesd import TAESDNetwork, build_decoder, build_encoder
from fedsynth.sealed_tensors import tensor_chunks
from fedsynth.text import printable
from fedsynth.weight_files import read_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes that ``_class_name`` of a diffusers folder may name. Diffusers imports its classes when they are used."""

MAX_CONFIG_BYTES = 2**16
MAX_ENTRIES = 16
"""Entries of a list among the settings: as many resolutions as a network can have."""
MAX_LAYERS = 32
MAX_NUMBER = 10**6
PROBE = 32
"""Side of the image that an autoencoder is tried on."""
_LAYERS = ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks")

# Names of attention layers in files that diffusers wrote before 0.16, such as Stable Diffusion 1.5's.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(r"(?<=\.attentions\.\d\.)(query|key|value|proj_attn)(?=\.)")

_AGAIN = "copy or save the autoencoder again"


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
    return _Folder(folder, key).read()


class _Folder:
    def __init__(self, folder: Path, key: str) -> None:
        self._given = f"{key} = '{folder}'"
        pipeline = folder / "vae"
        self._folder = pipeline if (pipeline / CONFIG_FILE).is_file() else folder

    def read(self) -> Autoencoder:
        if not self._folder.is_dir():
            raise self._error("there is no such folder: give a folder on this machine; nothing is downloaded")
        if (self._folder / CONFIG_FILE).is_file():
            return self._diffusers(self._settings())
        if (self._folder / "encoder.safetensors").is_file() or (self._folder / "decoder.safetensors").is_file():
            return self._taesd()
        raise self._error(
            f"holds no autoencoder (found {self._found()}): give one of diffusers ({CONFIG_FILE} with {WEIGHTS_FILE}),"
            " or of the TAESD family (encoder.safetensors with decoder.safetensors)"
        )

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self._given}: {problem}")

    def _found(self) -> str:
        names = sorted(path.name for path in self._folder.iterdir())
        return ", ".join(map(repr, names[:5])) + ", …" * (len(names) > 5) or "nothing"

    def _settings(self) -> dict[str, Any]:
        path = self._folder / CONFIG_FILE
        try:
            with path.open("rb") as file:
                content = file.read(MAX_CONFIG_BYTES + 1)
            if len(content) > MAX_CONFIG_BYTES:
                raise ValueError(f"longer than {MAX_CONFIG_BYTES} bytes")
            settings = parse_json(content)
        except (OSError, ValueError, RecursionError) as error:
            raise self._error(f"'{CONFIG_FILE}' cannot be read as JSON ({error}): {_AGAIN}") from error
        if not isinstance(settings, dict):
            raise self._error(f"'{CONFIG_FILE}' holds no settings by name: {_AGAIN}")
        return settings

    def _diffusers(self, settings: dict[str, Any]) -> Autoencoder:
        kind = settings.get("_class_name")
        if kind not in DIFFUSERS:
            raise self._error(f"'{CONFIG_FILE}' is of a {kind!r:.60}: give one of {', '.join(DIFFUSERS)}")
        network_class = getattr(diffusers, kind)
        signature = inspect.signature(network_class.__init__).parameters
        known = {name: value for name, value in settings.items() if name in signature and name != "sample_size"}
        for name, value in known.items():
            self._check_setting(name, value)
        weights = self._weights(WEIGHTS_FILE)
        weights = {_FORMER.sub(lambda found: _FORMER_NAMES[found[0]], name): value for name, value in weights.items()}
        try:
            with torch.device("meta"):  # no memory is taken for what the settings describe: the weights are the file's
                model = network_class(**known)
            model.load_state_dict(weights, strict=True, assign=True)
            network = DiffusersNetwork(model)
        except Exception as error:  # whatever a class of diffusers makes of such settings
            raise self._error(
                f"'{CONFIG_FILE}' and '{WEIGHTS_FILE}' do not fit ({_first_line(error)}): {_AGAIN}"
            ) from error
        changed = {name: value for name, value in known.items() if value != _as_json(signature[name].default)}
        return self._finished(
            network, kind, changed, weights, model.config["in_channels"], model.config["latent_channels"]
        )

    def _check_setting(self, name: str, value: Any) -> None:
        """Refuse what would take for ever to build; what is no setting of the class, the class refuses."""
        values = value if isinstance(value, list) else [value]
        most = MAX_LAYERS if name in _LAYERS else MAX_NUMBER
        if len(values) > MAX_ENTRIES:
            raise self._error(f"{name} in '{CONFIG_FILE}' has {len(values)} entries, at most {MAX_ENTRIES}: {_AGAIN}")
        for entry in values:
            if isinstance(entry, int | float) and not -most <= entry <= most:
                raise self._error(f"{name} in '{CONFIG_FILE}' must be {most} at most: {_AGAIN}")
            if not isinstance(entry, int | float | str | None):
                raise self._error(f"{name} in '{CONFIG_FILE}' is no number or word: {_AGAIN}")

    def _taesd(self) -> Autoencoder:
        encoder, decoder = (self._weights(f"{name}.safetensors") for name in ("encoder", "decoder"))
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
            raise self._error(
                f"the names or shapes in encoder.safetensors and decoder.safetensors are not those of the TAESD family"
                f" ({_first_line(error)}): give the two files as published"
            ) from error
        weights = {
            f"{part}.{name}": value
            for part, tensors in (("encoder", encoder), ("decoder", decoder))
            for name, value in tensors.items()
        }
        return self._finished(TAESDNetwork(*parts), "TAESD", {}, weights, image_channels, latent_channels)

    def _weights(self, name: str) -> dict[str, torch.Tensor]:
        path = self._folder / name
        if not path.is_file():
            raise self._error(
                f"holds no '{name}' (found {self._found()}); pickled weights are not read, as they can run code:"
                " save the autoencoder with safe_serialization=True"
            )
        try:
            return read_weights(path)
        except ValueError as error:
            raise self._error(f"{error}: {_AGAIN}") from error

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
            raise self._error(
                f"takes images of {image_channels} channels: give an autoencoder of grey or colour images"
            )
        try:
            latents = network.to_latents(torch.zeros(1, image_channels, PROBE, PROBE))
            images = network.to_images(latents)
        except Exception as error:  # whatever a class of diffusers makes of such settings
            raise self._error(f"does not encode an image ({_first_line(error)}): {_AGAIN}") from error
        factor = PROBE // latents.shape[-1]
        expected = (1, latent_channels, PROBE // factor, PROBE // factor)
        if latents.shape != expected or images.shape != (1, image_channels, PROBE, PROBE):
            raise self._error("what it decodes has not the size of what it encodes: give an autoencoder of images")
        if not (latents.isfinite().all() and images.isfinite().all()):
            raise self._error(f"what it makes of an image is not finite: {_AGAIN}")
        return factor


def _pooled(weights: Mapping[str, torch.Tensor]) -> set[int]:
    """Return the places of the pooled blocks in a sequence, by the names of its weights."""
    return {int(name.partition(".")[0]) for name in weights if re.fullmatch(r"\d{1,3}\.pool\..*", name)}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first_line(error: Exception) -> str:
    """Return what torch says first of several lines that name every weight."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines[:2]) or type(error).__name__, 200)
