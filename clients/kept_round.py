"""A silo's last private round of averaging: whoever asks again gets the very same weights, and they cost nothing.

A round that is repeated after an interruption would otherwise be a second answer about the same images, with noise of
its own, and spend its ε again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from clients.context import SiloContext
from fedsynth import __version__
from fedsynth.config import KEYS
from fedsynth.diffusion import codec_of
from fedsynth.files import atomic_file
from fedsynth.messages import TrainRequest
from fedsynth.sealed import Seal, SealError
from fedsynth.sealed_tensors import read_tensors, tensor_chunks, tensor_metadata


class KeptRound:
    """The network after the last private round that a silo has trained: one file, until the next round.

    Args:
        state: the silo's own state folder.
        question: which round it is, of :func:`question_of`.
    """

    def __init__(self, state: Path, question: str) -> None:
        self._folder = state / "private-round"
        self._file = self._folder / f"{question}.safetensors"
        self._seal = Seal("private round", 1, question)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Return the network's tensors after this round; None if another one was the last, or they are damaged."""
        if not self._file.exists():
            return None
        try:
            return read_tensors(self._file, self._seal)
        except (OSError, SealError):
            return None

    def keep(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the network's tensors after this round, and remove those of the one before.

        Raises:
            OSError: they cannot be written.
        """
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_file(self._file) as temporary:
            save_file(kept, temporary, tensor_metadata(kept, self._seal))
        for other in self._folder.glob("*.safetensors"):
            if other != self._file:
                other.unlink(missing_ok=True)


def question_of(request: TrainRequest, unet: UNet2DModel, silo: SiloContext) -> str:
    """Return a hash of all that decides a private round besides its noise.

    Args:
        request: the round.
        unet: the network that it starts from, with the tensors that stay in the silo.
        silo: whose images and settings they are.
    """
    config, spec = silo.config, request.spec
    decisive = {name for name, key in KEYS.items() if key.facts.affects == "results" and not key.may_change}
    flat = {name: value for name, value in config.to_run_config().items() if name in decisive}
    facts = {
        "fedsynth": __version__,
        "silo": silo.name,
        "data": silo.images(spec).fingerprint,
        "spec": [spec.channels, spec.size, *spec.classes],
        "codec": codec_of(config, spec).digest,
        "round": [request.server_round, request.steps, request.first_step, request.proximal_mu],
        "config": flat,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for chunk in tensor_chunks(unet.state_dict()):
        digest.update(chunk)
    return digest.hexdigest()[:32]
