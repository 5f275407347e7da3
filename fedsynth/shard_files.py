"""Weights on disk in shards: files of some layers each, to be read one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedsynth.errors import UserError
from fedsynth.files import atomic_file
from fedsynth.sealed_tensors import digest_of_tensors


class ShardFiles:
    """The shards of one model in a folder, a safetensors file each.

    Args:
        folder: made when the first shard is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, shard: int) -> Path:
        """Return where a shard lies."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def write(self, shard: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a shard, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_file(self.path(shard)) as temporary:
            # Not save_file(), whose error on a full disk does not say so.
            temporary.write_bytes(save(kept))

    def tensors(self, shard: int) -> dict[str, torch.Tensor]:
        """Return a shard's tensors, which lie on the file: the system takes their memory back when it needs it.

        Raises:
            UserError: there is no such shard, or it is damaged.
        """
        path = self.path(shard)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"shard {shard} is not there, or damaged ({error})") from None

    def read(self, shard: int, digest: str) -> dict[str, torch.Tensor]:
        """As :meth:`tensors`, if they are those that were written.

        Args:
            shard: its number.
            digest: their SHA-256, of :func:`~fedsynth.sealed_tensors.digest_of_tensors`.

        Raises:
            UserError: as :meth:`tensors`, or it is another one.
        """
        tensors = self.tensors(shard)
        if (found := digest_of_tensors(tensors)) != digest:
            raise UserError(f"shard {shard} is another one: SHA-256 {found:.12}…, and {digest:.12}… is asked for")
        return tensors

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
