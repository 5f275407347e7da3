"""Latents of images on a disk, so that an image is encoded once, however many processes and runs train on it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedsynth.disk import check_free_space
from fedsynth.errors import UserError
from fedsynth.files import atomic_file

logger = logging.getLogger("fedsynth")

LATENTS_BYTES = 2**31
"""Those of 32,000 images of 512×512, at 4 channels and an eighth of the side."""
_FORMAT = 1
_SUFFIX = ".latents"
_KEYS, _LATENTS = "images", "latents"
_WAITING_BYTES = 2**26


class LatentFiles:
    """Latents of one kind in a folder, found again by a hash of their image's bytes.

    A file is ``<hash of the kind>-<SHA-256 of its content>.latents``, safetensors of hashes ``images`` (n, 16) and
    ``latents`` (n, c, h, w). It is written once and never changed; one whose content is not that of its name is
    removed, and its images are encoded again. Several processes may share the folder, and it may be removed whenever
    none is at work. Where nothing can be written nothing is kept.

    Args:
        folder: of the files.
        kind: what decides latents besides their image: codec, device and versions.
        most_bytes: of all files of latents in the folder. For new ones those give way that this process has not used,
            the longest unused first.
    """

    def __init__(self, folder: Path, kind: str, most_bytes: float = LATENTS_BYTES) -> None:
        self._folder = folder
        self._name = hashlib.sha256(json.dumps([_FORMAT, kind]).encode()).hexdigest()[:16]
        self._most_bytes = most_bytes
        self._places: dict[bytes, tuple[Path, Any, int]] | None = None
        self._new: dict[bytes, torch.Tensor] = {}
        self._new_bytes = 0
        self._used: set[Path] = set()

    def find(self, key: bytes) -> torch.Tensor | None:
        """Return the latents (c, h, w) of the image with this hash; None: they are not there."""
        if key in self._new:
            return self._new[key]
        place = self._known().get(key)
        if place is None:
            return None
        path, latents, row = place
        if path not in self._used:
            self._used.add(path)
            with suppress(OSError):
                os.utime(path)
        found: torch.Tensor = latents[row : row + 1][0]
        return found

    def add(self, key: bytes, latents: torch.Tensor) -> None:
        """Note latents (c, h, w) for :meth:`write`, unless they are there."""
        if key in self._new or key in self._known():
            return
        self._new[key] = latents
        self._new_bytes += latents.nbytes
        if self._new_bytes >= _WAITING_BYTES:
            self.write()

    def write(self) -> None:
        """Write what was added; that it cannot be written, or has no room, is said and does no harm."""
        if not self._new:
            return
        keys = torch.tensor([list(key) for key in self._new], dtype=torch.uint8)
        content = save({_KEYS: keys, _LATENTS: torch.stack(list(self._new.values()))})
        self._new, self._new_bytes = {}, 0
        path = self._folder / f"{self._name}-{hashlib.sha256(content).hexdigest()}{_SUFFIX}"
        try:
            if not self._make_room(len(content)):
                logger.info("latents are not kept in %s: there is room for %d bytes", self._folder, self._most_bytes)
                return
            check_free_space(path, len(content))
            with atomic_file(path) as temporary:
                temporary.touch(mode=0o600)  # the images may be for their owner's eyes only
                temporary.write_bytes(content)
        except (OSError, UserError) as error:
            logger.info("latents are not kept in %s: %s", self._folder, error)
            return
        self._open(path, self._known())
        self._used.add(path)

    def _known(self) -> dict[bytes, tuple[Path, Any, int]]:
        if self._places is None:
            self._places = {}
            for path in sorted(self._folder.glob(f"{self._name}-*{_SUFFIX}")):
                self._open(path, self._places)
        return self._places

    def _open(self, path: Path, places: dict[bytes, tuple[Path, Any, int]]) -> None:
        """Note what a file holds; remove one that is damaged."""
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            if path.stem != f"{self._name}-{content}":
                logger.warning("%s is damaged: its images are encoded again", path)
                path.unlink(missing_ok=True)
                return
            opened = safe_open(path, "pt")
            keys, latents = opened.get_tensor(_KEYS), opened.get_slice(_LATENTS)
        except (OSError, SafetensorError) as error:
            logger.info("%s cannot be used: %s", path, error)
            return
        for row, key in enumerate(keys.numpy()):
            places[key.tobytes()] = path, latents, row

    def _make_room(self, size: int) -> bool:
        """Remove files that this process has not used, until there is room; return whether there is."""
        facts = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                found = path.stat()
                facts.append((found.st_mtime_ns, path, found.st_size))
        there = sum(size for _, _, size in facts)
        for _, path, freed in sorted(facts):
            if there + size <= self._most_bytes:
                break
            if path not in self._used:
                path.unlink(missing_ok=True)
                there -= freed
        return there + size <= self._most_bytes
