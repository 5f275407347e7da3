"""Codecs: between stored images and what a network sees, the *grid*.

Networks, noise, messages and mixtures work in the space of the grid alone. ``pixels`` are the images themselves,
scaled to [-1, 1]. ``unshuffle-k`` moves every k×k block of pixels into k² channels (Shi et al. 2016, arXiv 1609.05158,
backwards): a permutation, so that range, noise and every formula of a mixture stay what they are, while a network works
on k² times fewer places. ``autoencoder`` has a pretrained autoencoder before the network (Rombach et al. 2022, arXiv
2112.10752); its latents are standardised by statistics of public photographs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fedsynth.config import AUTO, RunConfig
from fedsynth.config.keys import one_of_words
from fedsynth.diffusion.augmentation import SHIFT, augmented
from fedsynth.diffusion.images import to_model_range, to_uint8
from fedsynth.diffusion.latent_files import LATENTS_BYTES, LatentFiles
from fedsynth.errors import UserError
from fedsynth.latent import Autoencoder, LatentStatistics, base_statistics, public_statistics, read_autoencoder
from fedsynth.spec import ImageSpec

AUTOENCODER = "autoencoder"
NAMES = {"pixels": 1, "unshuffle-2": 2, "unshuffle-4": 4, "unshuffle-8": 8}
"""Name -> side of the blocks of pixels that become channels."""
LEAST_GRID = 8
"""Side of the smallest grid that ``codec = auto`` chooses."""
SUMMED_FOLD = 4
"""Side of the blocks that ``codec = auto`` makes with ``dp-sum`` whatever the grid: in its few noisy steps a network
learns more that has weights of its own for every place of a block, and its steps are cheaper
(``docs/results/private.md``)."""


@dataclass(frozen=True)
class Codec:
    """``pixels`` or ``unshuffle-k`` for images of one format.

    Attributes:
        spec: format of the images.
        factor: k, side of the blocks of pixels that become channels; 1 for ``pixels``.
    """

    spec: ImageSpec
    factor: int = 1

    @property
    def name(self) -> str:
        """Its word in the configuration."""
        return next(name for name, factor in NAMES.items() if factor == self.factor)

    @property
    def grid(self) -> ImageSpec:
        """What a network sees, and the classes."""
        return ImageSpec(self.spec.channels * self.factor**2, self.spec.size // self.factor, self.spec.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the grid."""
        return self.grid.shape

    @property
    def bound(self) -> float:
        """Largest absolute value of clean samples, to which samplers clip."""
        return 1.0

    @property
    def digest(self) -> str:
        """What must be equal wherever networks of one run work, in words that a message can carry."""
        return self.name

    @property
    def saved(self) -> dict[str, Any]:
        """What a saved model says of it, see :func:`saved_codec`."""
        return {"codec": self.name}

    def encode(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Turn uint8 images (n, H, W, C) into samples, float32 (n, c, h, w)."""
        return F.pixel_unshuffle(to_model_range(images), self.factor)

    def encode_once(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Do the same for images that will hardly come again."""
        return self.encode(images)

    def decode(self, samples: torch.Tensor) -> NDArray[np.uint8]:
        """Turn samples (n, c, h, w) into uint8 images (n, H, W, C); what lies outside the range is clipped."""
        return to_uint8(F.pixel_shuffle(samples, self.factor))

    @property
    def reconstruct(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
        """Encodes and decodes images (n, H, W, C), n >= 1; None where that changes nothing."""
        return None

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rearrange pixels or their noise (n, C, H, W) as a network sees them (n, c, h, w)."""
        return F.pixel_unshuffle(pixels, self.factor)

    def to_pixels(self, samples: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`from_pixels`."""
        return F.pixel_shuffle(samples, self.factor)


class _KeptLatents:
    """Latents by codec and image, least recently used first out.

    Args:
        most_bytes: room for latents.
    """

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes
        self._items: OrderedDict[tuple[str, bytes], torch.Tensor] = OrderedDict()

    def get(self, codec: str, image: bytes, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the latents of an image, by its hash, made on first use."""
        key = codec, image
        if key not in self._items:
            self._items[key] = encode()
            self._room -= self._items[key].nbytes
        self._items.move_to_end(key)
        while self._room < 0 and len(self._items) > 1:
            self._room += self._items.popitem(last=False)[1].nbytes
        return self._items[key]


_kept = _KeptLatents(2**29)
"""Those of 60,000 images of 64×64, at 32 channels and an eighth of the side."""


@dataclass(frozen=True)
class LatentCodec(Codec):
    """``autoencoder``: standardised latents of images of one format.

    Attributes:
        autoencoder: the network between images and latents.
        statistics: by which its latents are standardised.
        files: where latents are looked for and noted, see :func:`latents_kept_in`; None: in memory alone.
    """

    autoencoder: Autoencoder = field(kw_only=True)
    statistics: LatentStatistics = field(kw_only=True)
    files: LatentFiles | None = field(default=None, kw_only=True, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Its word in the configuration."""
        return AUTOENCODER

    @property
    def grid(self) -> ImageSpec:
        """Channels and side of the latents, and the classes."""
        return ImageSpec(self.autoencoder.latent_channels, self.spec.size // self.factor, self.spec.classes)

    @property
    def bound(self) -> float:
        """1.5 times what the standardised latents of photographs reach."""
        return self.statistics.bound

    @property
    def digest(self) -> str:
        """``autoencoder`` and a SHA-256 of its kind, settings, weights and statistics."""
        both = f"{self.autoencoder.digest} {self.statistics.digest}"
        return f"{AUTOENCODER} {hashlib.sha256(both.encode()).hexdigest()}"

    @property
    def saved(self) -> dict[str, Any]:
        """What a saved model says of it: the digest and no path."""
        return {"codec": self.digest, "image_channels": self.spec.channels}

    def encode(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Turn uint8 images (n, H, W, C) into standardised latents, float32 (n, c, h, w).

        An image that was encoded in this process before, or is in the files, is not encoded again, while there is room.
        """
        digest = self.digest
        latents = [self._latents_of(image, digest) for image in images]
        return torch.stack(latents) if latents else torch.empty(0, *self.shape)

    def encode_once(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Do the same and keep nothing."""
        return self.statistics.standardise(self.autoencoder.encode(to_model_range(images)))

    def _latents_of(self, image: NDArray[np.uint8], digest: str) -> torch.Tensor:
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        if self.files is None:
            return _kept.get(digest, key, partial(self._encode_one, image))
        found = _kept.get(digest, key, partial(self._find_or_encode, key, image, self.files))
        self.files.add(key, found)
        return found

    def _find_or_encode(self, key: bytes, image: NDArray[np.uint8], files: LatentFiles) -> torch.Tensor:
        found = files.find(key)
        return self._encode_one(image) if found is None else found

    def _encode_one(self, image: NDArray[np.uint8]) -> torch.Tensor:
        return self.encode_once(image[None])[0]

    def decode(self, samples: torch.Tensor) -> NDArray[np.uint8]:
        """Turn standardised latents (n, c, h, w) into uint8 images (n, H, W, C); what the range lacks is clipped."""
        return to_uint8(self.autoencoder.decode(self.statistics.restore(samples), self.spec.channels))

    @property
    def reconstruct(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        """Returns what comes back of images (n, H, W, C), n >= 1."""
        return lambda images: self.decode(self.encode(images))

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raise ``TypeError``: noise of pixels is no noise of latents."""
        raise TypeError("latents are no rearranged pixels")

    def to_pixels(self, samples: torch.Tensor) -> torch.Tensor:
        """Raise ``TypeError``, too."""
        raise TypeError("latents are no rearranged pixels")


@contextmanager
def latents_kept_in(folder: Path, codec: Codec, most_bytes: float = LATENTS_BYTES) -> Iterator[Codec]:
    """Yield a codec that looks for latents in a folder first, and leaves there what the block makes; others as ever.

    Latents of another device or version of torch are others: their last bits can differ.

    Args:
        folder: receives the files, see :class:`~fedsynth.diffusion.latent_files.LatentFiles`.
        codec: the run's.
        most_bytes: of all latents there.
    """
    if not isinstance(codec, LatentCodec):
        yield codec
        return
    device = next(codec.autoencoder.network.parameters()).device.type
    files = LatentFiles(folder, f"{codec.digest} {device} {torch.__version__}", most_bytes)
    try:
        yield replace(codec, files=files)
    finally:
        files.write()


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Stored images as a network sees them; only the rows asked for are converted.

    Attributes:
        images: uint8 (n, H, W, C).
        codec: how they are encoded.
        augment: how they are varied when they are drawn, see :mod:`fedsynth.diffusion.augmentation`.
    """

    images: NDArray[np.uint8]
    codec: Codec
    augment: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the samples (m, c, h, w) at ``rows`` (m,)."""
        return self.codec.encode(self.images[rows.numpy()])

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return variants of the samples at ``rows``; the samples themselves without augmentation."""
        if not self.augment:
            return self[rows]
        pixels = torch.from_numpy(self.images[rows.numpy()]).permute(0, 3, 1, 2)
        varied = augmented(pixels, self.augment, generator).permute(0, 2, 3, 1).numpy()
        # Hardly one of so many variants is drawn again, and they would drive out the images that are.
        return self.codec.encode_once(varied) if SHIFT in self.augment else self.codec.encode(varied)


Images = torch.Tensor | EncodedImages
"""Samples (n, c, h, w), or images that become samples batch by batch."""


def convert(samples: torch.Tensor, before: Codec, after: Codec) -> torch.Tensor:
    """Rearrange samples, or their noise, from how one codec lays them out to how another does."""
    return samples if before == after else after.from_pixels(before.to_pixels(samples))


def saved_codec(saved: Mapping[str, Any], grid: ImageSpec, autoencoder: str | Path = "") -> Codec:
    """Return the codec of a saved model.

    Args:
        saved: what it says of its codec, see :attr:`Codec.saved`.
        grid: what its network sees, and its classes.
        autoencoder: folder of the autoencoder, for a model of latents.

    Raises:
        UserError: no such codec, or another autoencoder than the model's.
    """
    name = str(saved.get("codec") or "pixels")
    if name.startswith(AUTOENCODER):
        return _saved_latents(name, saved.get("image_channels"), grid, autoencoder)
    factor = NAMES.get(name)
    if factor is None:
        known = ", ".join((*NAMES, AUTOENCODER))
        raise UserError(f"codec = '{name:.100}' of the saved model: this version of fedsynth knows {known}")
    if autoencoder:
        raise UserError(f"autoencoder = '{autoencoder}': the saved model has codec = '{name}'; leave it out")
    if grid.channels % factor**2:
        raise UserError(f"codec = '{name}' of the saved model: does not make {grid.channels} channels")
    return Codec(ImageSpec(grid.channels // factor**2, grid.size * factor, grid.classes), factor)


def _saved_latents(digest: str, channels: Any, grid: ImageSpec, folder: str | Path) -> Codec:
    if not folder:
        raise UserError(f"autoencoder: the saved model is of latents; give the folder of '{digest:.100}'")
    if channels not in (1, 3):
        raise UserError("image_channels of the saved model: must be 1 or 3; copy or save it again")
    autoencoder = _autoencoder(folder)
    codec = _latent_codec(folder, ImageSpec(channels, grid.size * autoencoder.factor, grid.classes))
    if codec.digest != digest:
        raise UserError(
            f"autoencoder = '{folder}': it is '{codec.digest}', the saved model is of '{digest:.100}': give that one"
        )
    return codec


def codec_of(config: RunConfig, spec: ImageSpec) -> Codec:
    """Return the codec of a run's images.

    Raises:
        UserError: the size of the images is no multiple of what it folds.
    """
    model, device = config.model, config.run.device
    if model.base_model:
        return _latent_codec(model.base_model, spec, device, of_base_model=True)
    least = SUMMED_FOLD if config.run.strategy == "dp-sum" else 1
    return make_codec(config.recipe.codec, spec, model.autoencoder, device, least)


def make_codec(
    name: str, spec: ImageSpec, autoencoder: str | Path = "", device: str = "cpu", least_fold: int = 1
) -> Codec:
    """Return a codec by its name, or the one that suits the images for ``auto``.

    That is the autoencoder where one is given; otherwise the fold to the smallest grid of an even side of 8 or above,
    and whole images where there is none.

    Args:
        name: ``auto`` or a codec's.
        spec: format of the images, and the classes.
        autoencoder: folder of an autoencoder.
        device: ``cpu``, or that it works on CUDA where this process sees it.
        least_fold: side of the blocks up to which ``auto`` folds to smaller grids of an even side, too.

    Raises:
        UserError: the size of the images is no multiple of what it folds, or the autoencoder cannot be used.
    """
    if name == AUTOENCODER or (name == AUTO and autoencoder):
        if not autoencoder:
            raise UserError("codec = 'autoencoder' needs one: set autoencoder to its folder")
        return _latent_codec(autoencoder, spec, device)
    if name == AUTO:
        even = [k for k in NAMES.values() if spec.size % (2 * k) == 0]
        fits = [k for k in even if k <= least_fold or spec.size // k >= LEAST_GRID]
        return Codec(spec, max(fits, default=1))
    factor = NAMES[name]
    if spec.size % factor:
        foldable = [other for other, k in NAMES.items() if spec.size % k == 0]
        raise UserError(
            f"codec = '{name}': image-size = {spec.size} is no multiple of {factor}: set codec ="
            f" {one_of_words(map(repr, foldable))}, or another image-size"
        )
    return Codec(spec, factor)


def _latent_codec(folder: str | Path, spec: ImageSpec, device: str = "cpu", of_base_model: bool = False) -> LatentCodec:
    autoencoder = _autoencoder(folder, device, "base-model" if of_base_model else "autoencoder")
    autoencoder.check(spec.size, spec.channels)
    # The U-Net of a base model was trained on latents as diffusers' pipelines scale them.
    measure = _base_statistics if of_base_model else _statistics
    statistics = measure(autoencoder, spec.size, spec.channels)
    return LatentCodec(spec, autoencoder.factor, autoencoder=autoencoder, statistics=statistics)


def _autoencoder(folder: str | Path, device: str = "cpu", key: str = "autoencoder") -> Autoencoder:
    path = Path(folder).expanduser().absolute()
    try:
        parts = sorted(file for place in (path, path / "vae") if place.is_dir() for file in place.iterdir())
        # A process may outlast the files that it has read.
        stamp = tuple((file.name, facts.st_size, facts.st_mtime_ns) for file in parts for facts in [file.stat()])
    except OSError as error:
        raise UserError(f"{key} = '{path}': {error.strerror or error}") from error
    return _read(path, key, stamp, "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=2)
def _read(path: Path, key: str, stamp: tuple[Any, ...], device: str) -> Autoencoder:
    autoencoder = read_autoencoder(path, key)
    autoencoder.network.to(device)
    return autoencoder


_statistics = lru_cache(maxsize=4)(public_statistics)
_base_statistics = lru_cache(maxsize=4)(base_statistics)
