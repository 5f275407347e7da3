"""Seals of tensors: what ``torch.save`` and safetensors write, see :mod:`fedsynth.sealed`.

Apart from it, because most who read a seal have no use for torch, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open

from fedsynth.files import atomic_file
from fedsynth.sealed import ENTRY, Seal, SealError, check_file, say_unsealed, seal_line, sha256_of

_ZIP_END_BYTES = 22
"""Length of a zip archive's last record, without the comment that those of ``torch.save`` lack."""


class _SealingFile:
    """A file open for writing that computes the checksum of all that goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def finish(self, seal: Seal) -> None:
        """Append the seal; all is on the disk when this returns, so that the former file can be moved away."""
        self._file.write(seal_line(seal, self._digest.hexdigest()))
        self._file.flush()
        os.fsync(self._file.fileno())


def save_torch(path: Path, value: Any, seal: Seal, former: Path | None = None) -> None:
    """Do ``torch.save`` with a seal, atomically; what stood at ``path`` goes to ``former``, or is lost.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            sealing = _SealingFile(file)
            try:
                torch.save(value, cast(IO[bytes], sealing))
            except RuntimeError as error:
                # What torch says when it closes the archive hides the reason why it could not be written.
                raise (sealing.error or error) from None
            sealing.finish(seal)
        if former is not None and path.is_file():
            path.replace(former)


def load_torch(path: Path, seal: Seal) -> Any:
    """Return what :func:`save_torch` wrote, tensors on the CPU; no code of the file is run.

    Raises:
        SealError: it is not what was written.
        OSError: it cannot be read.
    """
    try:
        if not check_file(path, seal):
            _check_archive(path)
            say_unsealed(seal.content, path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SealError):
        raise
    except Exception as error:  # whatever torch and zipfile make of a damaged file
        raise SealError(str(error)) from error


def tensor_metadata(tensors: Mapping[str, torch.Tensor], seal: Seal) -> dict[str, str]:
    """Return the metadata for a safetensors file of tensors."""
    return {ENTRY: seal.text(digest_of_tensors(tensors))}


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors, 64 hexadecimal digits."""
    return sha256_of(tensor_chunks(tensors))


def read_tensors(path: Path, seal: Seal) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file written with :func:`tensor_metadata`, or without.

    Raises:
        SealError: they are not what was written.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise SealError(str(error)) from error
    if ENTRY in metadata:
        seal.check(metadata[ENTRY], tensor_chunks(tensors))
    else:
        say_unsealed(seal.content, path)
    return tensors


def tensor_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterable[bytes | memoryview]:
    """Yield what a checksum of tensors is taken over: name, dtype, shape and bytes of each, sorted by name."""
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        if tensor.numel():  # one without numbers may have no stride to be viewed with
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_archive(path: Path) -> None:
    """Check a file without seal by what a zip archive says of itself: its end, and the checksums of its parts."""
    with path.open("rb") as file:
        file.seek(-min(_ZIP_END_BYTES, path.stat().st_size), os.SEEK_END)
        if not file.read().startswith(b"PK\5\6"):
            raise SealError("its end is missing")
    with zipfile.ZipFile(path) as archive:
        if changed := archive.testzip():
            raise SealError(f"'{changed}' does not match its checksum")
