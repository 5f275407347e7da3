"""The datasets by name: each gives a train fold for the silos and a test fold that stays with the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.data.camelyon17 import load_camelyon17
from fedsynth.data.celeba import load_celeba
from fedsynth.data.cifar100 import superclass_silos
from fedsynth.data.folder_layout import find_folds
from fedsynth.data.hub_folder import load_hub_folder
from fedsynth.data.image_cache import ImageCache
from fedsynth.data.image_folder import load_image_folder
from fedsynth.data.labelled_images import Folds, LabelledImages, stratified_split
from fedsynth.data.medmnist import load_medmnist
from fedsynth.data.origins import Origins, refuse_shared_groups, with_test_silo
from fedsynth.data.pixels import conform
from fedsynth.data.value_range import ValueRange
from fedsynth.errors import UserError, unknown_choice
from fedsynth.plugins import family, is_plugin, load_plugin

_DIGITS_SPLIT_SEED = 0
_TEN_DIGITS = tuple(map(str, range(10)))
_NO_ORIGINS = Origins()


@dataclass(frozen=True)
class _Request:
    name: str
    root: Path | None
    image_size: int | None
    channels: int | None
    download: bool
    skip_bad_images: bool
    value_range: ValueRange | None
    first_page_only: bool
    seed: int
    origins: Origins
    cache: ImageCache | None


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    skip_bad_images: bool = False,
    value_range: ValueRange | None = None,
    first_page_only: bool = False,
    seed: int = 0,
    origins: Origins = _NO_ORIGINS,
    cache: ImageCache | None = None,
) -> Folds:
    """Load the train and test folds of a dataset.

    | name | where | default |
    |---|---|---|
    | digits | scikit-learn's, embedded; 1,437 / 360, always the same | 8x8x1 |
    | mnist | ``root/MNIST/raw``, as torchvision keeps it | 32x32x1 |
    | fashion-mnist | ``root/FashionMNIST/raw``, as torchvision keeps it | 32x32x1 |
    | cifar10 | ``root/cifar-10-batches-py``, or ``train`` and ``test`` in ``root`` | 32x32x3 |
    | cifar100 | ``root/cifar-100-python``; 100 classes | 32x32x3 |
    | camelyon17 | ``root`` or its camelyon17_v1.0: metadata.csv, ``patches/``; split by ``seed`` | 32x32x3 |
    | hf:FOLDER | ``root/FOLDER``, or ``hf`` alone ``root``: saved by ``datasets``, or parquet files | see below |
    | medmnist:NAME | ``root/NAME.npz``, or ``root/NAME_64.npz`` and so on | 28x28, the set's |
    | celeba | ``root/celeba``, as torchvision keeps it; 8 classes | 32x32x3 |
    | imagefolder | folds as ``train/`` and ``test/``, or class folders, split 80/20 by ``seed`` | see below |

    Above the folders of imagefolder there are silos' folders, if ``origins`` is natural.

    MNIST's 28x28 images get a border of zeros for 32x32; every other change of size resizes. Details and
    defaults: :func:`~fedsynth.data.celeba.load_celeba`, :func:`~fedsynth.data.medmnist.load_medmnist`,
    :func:`~fedsynth.data.camelyon17.load_camelyon17`,
    :func:`~fedsynth.data.hub_folder.load_hub_folder`, :func:`~fedsynth.data.image_folder.read_image_folder`.

    Args:
        name: one of :data:`DATASETS`, of a family such as medmnist with the set's name behind a colon; or
            ``module:function`` of a plug-in: called with ``root`` and ``image_size`` as below, by name, it returns both
            folds.
        root: the folder with the data; digits needs none.
        image_size: height and width in pixels, at least 1; None: the default above.
        channels: 1 or 3; None: the default above.
        download: let torchvision fetch what is missing (mnist, fashion-mnist, cifar10, cifar100, celeba).
        skip_bad_images: leave out unreadable files, with a logged warning, instead of refusing (folders and celeba).
        value_range: what of more than 8 bits becomes black and white; None: found over both folds (folders only).
        first_page_only: take the first page or frame of files with several, instead of refusing them (folders only).
        seed: decides the split of what has no folds of its own, nothing else.
        origins: which silos and groups the images are to say they come from, where the dataset can.
        cache: receives large sets, decoded; None: they are held in memory.

    Raises:
        UserError: unknown name, missing or broken data, an argument out of range, or a group in both folds.
    """
    if family(name) not in _LOADERS and not is_plugin(name):
        raise unknown_choice("dataset", name, DATASETS)
    if image_size is not None and image_size < 1:
        raise UserError(f"image-size = {image_size} is out of range: give at least 1 pixel")
    if channels not in (None, 1, 3):
        raise UserError(f"channels = {channels} is not allowed: give 1 (grey) or 3 (RGB)")
    folder = None if root in (None, "") else Path(str(root)).expanduser()
    reading = (image_size, channels, download, skip_bad_images, value_range, first_page_only)
    request = _Request(name, folder, *reading, seed, origins, cache)
    folds = _plugin(request) if is_plugin(name) else _LOADERS[family(name)](request)
    if origins.test_silo:
        folds = with_test_silo(folds, origins.test_silo)
    refuse_shared_groups(*folds)
    return folds


def _digits(request: _Request) -> Folds:
    from sklearn.datasets import load_digits  # slow to import

    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    images = conform(images, request.image_size or 8, request.channels or 1)
    data = LabelledImages(images, source.target.astype(np.int64), _TEN_DIGITS)
    train, test = stratified_split(data.labels, 0.2, np.random.default_rng(_DIGITS_SPLIT_SEED))
    return data.subset(train), data.subset(test)


def _mnist(request: _Request) -> Folds:
    return _mnist_like(request, "MNIST", lambda _: _TEN_DIGITS)


def _fashion_mnist(request: _Request) -> Folds:
    # Class names become folder names, which "T-shirt/top" cannot.
    return _mnist_like(request, "FashionMNIST", lambda names: tuple(name.replace("/", "-") for name in names))


def _mnist_like(request: _Request, source: str, name_classes: Callable[[list[str]], tuple[str, ...]]) -> Folds:
    layout = f"the four *-ubyte files in '{_root(request) / source / 'raw'}'"
    train, test = (
        LabelledImages(
            _mnist_pixels(fold.data.numpy(), request.image_size or 32, request.channels or 1),
            fold.targets.numpy().astype(np.int64),
            name_classes(fold.classes),
        )
        for fold in _torchvision_folds(request, source, layout)
    )
    return train, test


def _mnist_pixels(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    if size == 32:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return conform(images[..., np.newaxis], size, channels)


def _cifar10(request: _Request) -> Folds:
    root = _root(request)
    if find_folds(root):
        return _folder(request, root, request.image_size or 32, request.channels or 3)
    layout = f"the folder cifar-10-batches-py/, or train/ and test/ with one folder per class, in '{root}'"
    return _cifar(request, "CIFAR10", layout)


def _cifar100(request: _Request) -> Folds:
    train, test = _cifar(request, "CIFAR100", f"the folder cifar-100-python/ in '{_root(request)}'")
    return _with_superclasses(train, request.origins), _with_superclasses(test, request.origins)


def _with_superclasses(fold: LabelledImages, origins: Origins) -> LabelledImages:
    return replace(fold, silos=superclass_silos(fold.labels, fold.classes, origins))


def _cifar(request: _Request, source: str, layout: str) -> Folds:
    size, channels = request.image_size or 32, request.channels or 3
    train, test = (
        LabelledImages(conform(fold.data, size, channels), np.array(fold.targets, np.int64), tuple(fold.classes))
        for fold in _torchvision_folds(request, source, layout)
    )
    return train, test


def _celeba(request: _Request) -> Folds:
    root = _root(request)
    if request.download:
        _torchvision("CelebA", root, f"CelebA's files in '{root / 'celeba'}'", split="test", download=True)
    size, channels = request.image_size or 32, request.channels or 3
    return load_celeba(root, size, channels, request.skip_bad_images, request.cache)


def _medmnist(request: _Request) -> Folds:
    _, _, name = request.name.partition(":")
    return load_medmnist(name, _root(request), request.image_size, request.channels, request.cache)


def _camelyon17(request: _Request) -> Folds:
    return load_camelyon17(_root(request), *_decoding(request))


def _hub_folder(request: _Request) -> Folds:
    _, _, name = request.name.partition(":")
    return load_hub_folder(_root(request) / name, *_decoding(request))


def _decoding(request: _Request) -> tuple[int | None, int | None, bool, int, Origins, ImageCache | None]:
    size, channels = request.image_size, request.channels
    return size, channels, request.skip_bad_images, request.seed, request.origins, request.cache


def _imagefolder(request: _Request) -> Folds:
    return _folder(request, _root(request), request.image_size, request.channels)


def _folder(request: _Request, root: Path, size: int | None, channels: int | None) -> Folds:
    return load_image_folder(
        root,
        size,
        channels,
        request.skip_bad_images,
        request.seed,
        value_range=request.value_range,
        first_page_only=request.first_page_only,
        origins=request.origins,
        cache=request.cache,
    )


def _plugin(request: _Request) -> Folds:
    folds: Folds = load_plugin("dataset", request.name)(root=request.root, image_size=request.image_size)
    fits = isinstance(folds, tuple) and len(folds) == 2 and all(isinstance(fold, LabelledImages) for fold in folds)
    if not fits or folds[0].classes != folds[1].classes or folds[0].images.shape[1:] != folds[1].images.shape[1:]:
        raise UserError(
            f"dataset = '{request.name}': must return two LabelledImages, train and test fold, of the same classes and"
            " image size"
        )
    return folds


def _root(request: _Request) -> Path:
    if request.root is None:
        raise UserError(f"dataset '{request.name}' needs data-root: give the folder with its data")
    return request.root


def _torchvision_folds(request: _Request, source: str, layout: str) -> tuple[Any, Any]:
    train, test = (
        _torchvision(source, _root(request), layout, train=fold, download=request.download) for fold in (True, False)
    )
    return train, test


def _torchvision(source: str, root: Path, layout: str, **arguments: Any) -> Any:
    import torchvision.datasets  # slow to import

    try:
        return getattr(torchvision.datasets, source)(root, **arguments)
    except Exception as error:  # missing files, broken files and failed downloads raise a dozen types
        if arguments["download"]:
            raise UserError(f"{source} could not be fetched ({error}): put {layout} by hand") from error
        raise UserError(f"{source} is missing or damaged: put {layout}, or set download=true to fetch it") from error


_LOADERS: dict[str, Callable[[_Request], Folds]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "celeba": _celeba,
    "camelyon17": _camelyon17,
    "medmnist": _medmnist,
    "hf": _hub_folder,
    "imagefolder": _imagefolder,
}

DATASETS = tuple(_LOADERS)
"""Names that :func:`load_dataset` knows."""
