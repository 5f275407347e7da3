"""The families of base models: what the network of each is asked by, and how a run's network is made of its folder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch

from fedsynth.adapter_shapes import Shape
from fedsynth.config.training import LORA
from fedsynth.diffusion.adapters import AdaptedUNet, Adapters
from fedsynth.diffusion.codec import Codec
from fedsynth.diffusion.denoiser import LabelledTransformer, PromptedUNet
from fedsynth.errors import UserError
from fedsynth.latent.conditions import NOTHING, PROMPTS, digest_of_text, prompts_of, read_conditions
from fedsynth.latent.folder import MAX_NUMBER, ModelFolder
from fedsynth.seeding import make_generator

KEY = "base-model"
INDEX_FILE = "model_index.json"
_WHOLE = {"sample_size": (32, 1024), "patch_size": (2, 64), "num_embeds_ada_norm": (1000, MAX_NUMBER)}
"""Settings of a transformer -> what they are where nothing is said, and at most."""
FRESH = 0.02
"""Standard deviation of the embeddings of classes as DiT draws them (Peebles & Xie 2023, arXiv 2212.09748)."""
_TABLE = ".class_embedder.embedding_table.weight"
_NOT_BUILT = {
    "class_embed_type": "classes besides prompts",
    "num_class_embeds": "classes besides prompts",
    "addition_embed_type": "pooled embeddings, as Stable Diffusion XL has them,",
    "encoder_hid_dim_type": "embeddings of images",
}
"""Settings of a U-Net that must be None -> what it then would take."""


@dataclass(frozen=True, eq=False)
class BaseModel(ABC):
    """A base model's folder, looked through.

    Attributes:
        folder: where it is.
        digest: SHA-256 of all that is frozen or started from, but for the autoencoder, which the codec's names; 64
            hexadecimal digits.
        shapes: of the tensors of its network, by state dict name.
    """

    key: ClassVar[str] = KEY
    noun: ClassVar[str] = "base model"
    kind: ClassVar[str]
    part: ClassVar[str]
    """Folder of its network."""
    takes_adapters: ClassVar[bool] = True

    folder: ModelFolder
    digest: str
    shapes: Mapping[str, Shape] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)

    @classmethod
    @abstractmethod
    def facts(cls, folder: ModelFolder, settings: Mapping[str, Any]) -> str:
        """Return what decides its results beside weights, settings and schedule, for the digest.

        Raises:
            UserError: it is of a kind that is not built, or a file of it is damaged.
        """

    @abstractmethod
    def network(
        self, template: str, codec: Codec, adapters: Adapters | None, with_nothing: bool, seed: int
    ) -> PromptedUNet | LabelledTransformer:
        """Return the network of a run, on the CPU, in single precision.

        Args:
            template: ``prompt`` of the run.
            codec: the run's.
            adapters: that it is given; None: its weights themselves are trained.
            with_nothing: whether it can be asked about no class.
            seed: the run's.

        Raises:
            UserError: it is no network of such latents, or cannot be asked about the run's classes.
        """

    def check_train(self, train: str) -> None:
        """Refuse adapters beside a table of classes: what it does not know by name it would not learn.

        Raises:
            UserError: names the key.
        """
        if train == LORA and not self.takes_adapters:
            raise UserError(
                f"train = '{LORA}' with a base model of classes: it would not learn those that it does not know; leave"
                " train out"
            )

    def shapes_for(self, classes: int) -> dict[str, Shape]:
        """Return by name the shapes of the weights of a run's network, of so many classes."""
        return dict(self.shapes)

    def known(self, classes: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return those of a run's classes that it has learnt by name; None where prompts ask for them."""
        return None

    @property
    def num_weights(self) -> int:
        """Numbers in its network."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def _part(self) -> ModelFolder:
        return part_of(self.folder, self.part)

    def _check_channels(self, codec: Codec, answered: tuple[int, ...]) -> None:
        taken, answers = self.settings.get("in_channels", 4), self.settings.get("out_channels")
        answers = taken if answers is None else answers
        if taken != codec.grid.channels or answers not in answered:
            raise self.folder.error(
                f"its network takes {taken} channels and answers {answers}, and latents have {codec.grid.channels}:"
                " give a model that makes images of such latents"
            )

    def _check_side(self, codec: Codec, divisor: int) -> None:
        if codec.grid.size % divisor:
            step = divisor * codec.factor
            near = max(1, round(codec.spec.size / step)) * step
            raise UserError(
                f"image-size = {codec.spec.size}: must be a multiple of {step} for this base model: set image-size ="
                f" {near}"
            )


@dataclass(frozen=True, eq=False)
class PromptedBase(BaseModel):
    """Stable Diffusion 1.x and 2.x: a U-Net that attends to a prompt."""

    kind = "UNet2DConditionModel"
    part = "unet"

    @classmethod
    def facts(cls, folder: ModelFolder, settings: Mapping[str, Any]) -> str:
        """Return the digest of its text encoder or table."""
        for name, takes in _NOT_BUILT.items():
            if settings.get(name) is not None:
                raise folder.error(f"{name} = {settings[name]!r:.60}: a U-Net that takes {takes} is not built yet")
        return digest_of_text(folder)

    def prompts(self, template: str, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the prompt of every class, as :func:`fedsynth.latent.conditions.prompts_of`."""
        return prompts_of(self.folder, template, classes)

    def network(
        self, template: str, codec: Codec, adapters: Adapters | None, with_nothing: bool, seed: int
    ) -> PromptedUNet:
        """Return the U-Net with the prompts of a run's classes."""
        from diffusers import UNet2DConditionModel  # a second that other runs do without

        self._check_channels(codec, (codec.grid.channels,))
        self._check_side(codec, 2 ** (len(self.settings.get("block_out_channels", (0,) * 4)) - 1))
        prompts = self.prompts(template, codec.spec.classes)
        conditions = _conditions(self, (*prompts, NOTHING) if with_nothing else prompts).clone()
        conditions, nothing = (conditions[:-1], conditions[-1]) if with_nothing else (conditions, None)
        width = self.settings.get("cross_attention_dim", 1280)
        if width != conditions.shape[-1]:
            raise self.folder.error(
                f"its U-Net attends to {width!s:.60} numbers, and a prompt has {conditions.shape[-1]}:"
                f" {self.folder.again}"
            )
        unet, _ = self._part.build(UNet2DConditionModel, self.settings, self._part.weights(), ())
        if adapters is not None:
            return AdaptedUNet(unet.float(), conditions, adapters, self.digest, nothing)
        return PromptedUNet(unet.float(), conditions, nothing)


@lru_cache(maxsize=4)
def _conditions(base: BaseModel, prompts: tuple[str, ...]) -> torch.Tensor:
    return read_conditions(base.folder, prompts)


@dataclass(frozen=True, eq=False)
class LabelledBase(BaseModel):
    """DiT: a transformer with a table of classes in every block (Peebles & Xie 2023, arXiv 2212.09748).

    A run's classes take the rows of the classes that the base knows by name, or by the name that ``prompts.json`` gives
    them. The others start from the row of no class with noise beside it, each its own: networks whose classes start
    alike mix up their labels.
    """

    kind = "DiTTransformer2DModel"
    part = "transformer"
    takes_adapters = False

    @classmethod
    def facts(cls, folder: ModelFolder, settings: Mapping[str, Any]) -> str:
        """Return the names of its classes, and what calls the run's by them."""
        for name, (usual, most) in _WHOLE.items():
            value = settings.get(name, usual)
            if not (isinstance(value, int) and 1 <= value <= most):
                raise folder.error(f"{name} = {value!r:.60}: must be a whole number from 1 to {most}")
        return repr((sorted(labels_of(folder).items()), _own_names(folder)))

    def shapes_for(self, classes: int) -> dict[str, Shape]:
        """Return the shapes of the weights, with rows for so many classes, and for none."""
        return {
            name: (classes + 1, *shape[1:]) if name.endswith(_TABLE) else shape for name, shape in self.shapes.items()
        }

    def known(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of a run's classes that it knows by name."""
        return tuple(name for name, row in zip(classes, self._rows(classes), strict=True) if row is not None)

    def network(
        self, template: str, codec: Codec, adapters: Adapters | None, with_nothing: bool, seed: int
    ) -> LabelledTransformer:
        """Return the transformer with the run's classes."""
        from diffusers import DiTTransformer2DModel  # a second that other runs do without

        patch = self.settings.get("patch_size", 2)
        # Twice as many where it predicts the variance, too.
        self._check_channels(codec, (codec.grid.channels, 2 * codec.grid.channels))
        self._check_side(codec, patch)
        weights, classes = self._part.weights(), codec.spec.classes
        for name in [name for name in weights if name.endswith(_TABLE)]:
            weights[name] = self._table(weights[name], classes, seed)
        settings = {**self.settings, "num_embeds_ada_norm": len(classes)}
        transformer, _ = self._part.build(DiTTransformer2DModel, settings, weights, ())
        place_patches(transformer, codec.grid.size // patch)
        return LabelledTransformer(transformer.float())

    def _table(self, table: torch.Tensor, classes: tuple[str, ...], seed: int) -> torch.Tensor:
        """Return the rows of the run's classes, and of none."""
        if table.ndim != 2 or len(table) != self.settings.get("num_embeds_ada_norm", 1000) + 1:
            raise self.folder.error(
                f"a table of classes has shape {tuple(table.shape)}, not a row for each of its classes and one for"
                f" none: {self.folder.again}"
            )
        nothing = table[-1].float()
        fresh = FRESH * torch.randn((len(classes), len(nothing)), generator=make_generator(seed, "classes-of-base"))
        rows = [
            nothing + new if row is None else table[row].float()
            for row, new in zip(self._rows(classes), fresh, strict=True)
        ]
        return torch.stack([*rows, nothing])

    def _rows(self, classes: tuple[str, ...]) -> list[int | None]:
        labels, own = labels_of(self.folder), _own_names(self.folder)
        most = self.settings.get("num_embeds_ada_norm", 1000)
        found = [labels.get(own.get(name, name).strip().casefold()) for name in classes]
        return [row if row is not None and row < most else None for row in found]


def place_patches(transformer: Any, side: int) -> None:
    """Give a transformer the places of a grid of patches, which are computed and stand in no file of weights.

    Args:
        transformer: a ``DiTTransformer2DModel``.
        side: of the grid, in patches.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    patches = transformer.pos_embed
    width = transformer.inner_dim
    places = get_2d_sincos_pos_embed(
        width, side, base_size=patches.base_size, interpolation_scale=patches.interpolation_scale, output_type="pt"
    )
    patches.register_buffer("pos_embed", places.float()[None], persistent=False)
    patches.height = patches.width = side


def labels_of(folder: ModelFolder) -> dict[str, int]:
    """Return the rows of a base model's classes by name, in lower case, as ``id2label`` of its index lists them.

    A class may have several names, with commas between them.

    Raises:
        UserError: the index cannot be read, or lists something else.
    """
    if not (folder.folder / INDEX_FILE).is_file():
        return {}
    listed = folder.settings(INDEX_FILE).get("id2label") or {}
    if not isinstance(listed, dict) or not all(
        key.isdecimal() and len(key) < 7 and isinstance(value, str) for key, value in listed.items()
    ):
        raise folder.error(f"id2label in '{INDEX_FILE}' must name classes by number: {folder.again}")
    return {
        name.strip().casefold(): int(row) for row, names in listed.items() for name in names.split(",") if name.strip()
    }


def part_of(folder: ModelFolder, part: str) -> ModelFolder:
    """Return the folder of one network of a base model."""
    return ModelFolder(folder.folder / part, folder.given, "the base model")


def _own_names(folder: ModelFolder) -> dict[str, str]:
    if not (folder.folder / PROMPTS).is_file():
        return {}
    return {name: value for name, value in folder.settings(PROMPTS).items() if isinstance(value, str)}


FAMILIES: tuple[type[BaseModel], ...] = (PromptedBase, LabelledBase)
