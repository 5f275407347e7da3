"""Low-rank adapters beside the weights of a base model's U-Net (``train = lora``), by peft."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fedsynth.adapter_shapes import A, B, adapted_layers, factor_shapes, most_rank
from fedsynth.config import RunConfig
from fedsynth.config.methods import AveragingSettings
from fedsynth.config.training import LORA
from fedsynth.diffusion.denoiser import PromptedUNet
from fedsynth.errors import UserError
from fedsynth.seeding import make_generator
from fedsynth.weight_files import read_weights

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ADAPTERS_FILE = "pytorch_lora_weights.safetensors"
"""Where ``load_lora_weights`` of diffusers' pipelines looks."""
_PACKAGE = "peft"
_OF_UNET = "unet."
_BASE = "base-model"
_PURPOSE = "adapters"
_NAME = "default"
"""What peft calls an adapter that nobody named."""


@dataclass(frozen=True)
class Adapters:
    """Which adapters a run trains.

    Attributes:
        rank: r.
        targets: ``lora-targets``.
        seed: the run's, which decides the A that training begins with.
        frozen_a: whether A stays as it begins, and B alone is trained, kept and sent.
        stacked: whether rounds begin anew, beside weights that hold what was learnt before.
    """

    rank: int
    targets: str
    seed: int
    frozen_a: bool = False
    stacked: bool = False


def adapters_of(config: RunConfig) -> Adapters | None:
    """Return the adapters of a run; None where weights themselves are trained.

    Raises:
        UserError: peft is missing.
    """
    adapters = chosen_adapters(config)
    if adapters is not None and find_spec(_PACKAGE) is None:
        raise UserError(
            f"train = '{LORA}' needs {_PACKAGE}: pip install 'fedsynth[base]' at the server and at every silo, or leave"
            " train out to train the U-Net"
        )
    return adapters


def chosen_adapters(config: RunConfig) -> Adapters | None:
    """Do the same where peft is not needed, such as to say how large they are."""
    model, settings = config.model, config.settings
    if model.train != LORA:
        return None
    averaged = settings.lora_aggregation if isinstance(settings, AveragingSettings) else ""
    return Adapters(model.lora_rank, model.lora_targets, config.run.seed, averaged == "freeze-a", averaged == "stack")


class AdaptedUNet(PromptedUNet):
    """A U-Net whose weights W stay as they are, beside adapters: its layers answer W x + B A x.

    Parameters and state dict, and so what is optimised, averaged, saved and sent, are those of what is trained alone. B
    is 0 at first, and A is drawn by the seed, the same everywhere.

    Args:
        unet: of the base model; it takes the adapters.
        conditions: as of :class:`PromptedUNet`.
        adapters: which.
        base: digest of the base model.
        nothing: as of :class:`PromptedUNet`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        conditions: torch.Tensor,
        adapters: Adapters,
        base: str,
        nothing: torch.Tensor | None = None,
    ) -> None:
        super().__init__(unet, conditions, nothing)
        self.adapters = adapters
        self.base = base
        shapes = {name: tuple(weights.shape) for name, weights in unet.state_dict().items()}
        self._shapes = adapted_layers(shapes, adapters.targets)
        self._layers = _insert(unet, list(self._shapes), adapters.rank)
        self._begin_anew(make_generator(adapters.seed, _PURPOSE))

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained."""
        for name, parameter in super().named_parameters(*args, **options):
            if parameter.requires_grad:
                yield name, parameter

    def factors(self) -> dict[str, torch.Tensor]:
        """Return A and B of every layer by diffusers' names, also an A that is not trained."""
        return {
            layer + suffix: factor.detach()
            for layer, module in self._layers.items()
            for suffix, factor in ((A, _factor_a(module).weight), (B, _factor_b(module).weight))
        }

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the factors that are trained."""
        return {name: factor for name, factor in self.factors().items() if name.endswith(B) or not self._frozen_a}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the factors that are trained; of stacked adapters with whatever rank, up to that of the layer's weights.

        Raises:
            ValueError: others, or of another shape; nothing was taken.
        """
        ranks = {
            layer: len(state_dict[layer + A])
            if self.adapters.stacked and layer + A in state_dict
            else self.adapters.rank
            for layer in self._layers
        }
        expected = {
            name: shape
            for layer, whole in self._shapes.items()
            for name, shape in factor_shapes({layer: whole}, ranks[layer], self._frozen_a).items()
        }
        if unknown := sorted(state_dict.keys() ^ expected.keys()):
            raise ValueError(f"adapter '{unknown[0]:.200}' is missing or unknown")
        for name, shape in expected.items():
            if (found := tuple(state_dict[name].shape)) != shape:
                raise ValueError(f"adapter '{name}' has shape {found}, not {shape}")
        for layer, rank in ranks.items():
            if rank > (most := max(self.adapters.rank, most_rank(self._shapes[layer]))):
                raise ValueError(f"the adapter of '{layer}' has rank {rank}, at most {most}")
        for layer, module in self._layers.items():
            if not self._frozen_a:
                _take(_factor_a(module), state_dict[layer + A])
            _take(_factor_b(module), state_dict[layer + B])

    def of_nothing(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """Return the prediction for the empty prompt (n, c, h, w), without the adapters if it is the base's to give."""
        if not self.guided_from_base:
            return super().of_nothing(sample, timestep)
        self._scale_products(0.0)
        try:
            return super().of_nothing(sample, timestep)
        finally:
            self._scale_products(1.0)

    def _scale_products(self, scale: float) -> None:
        for module in self._layers.values():
            module.scaling[_NAME] = scale

    def fold(self, server_round: int) -> None:
        """Add what the adapters have learnt to the weights, and begin with new ones: the network answers as before."""
        with torch.no_grad():
            for module in self._layers.values():
                weights = module.get_base_layer().weight
                weights.add_(_product(module).to(weights))
        self._begin_anew(make_generator(self.adapters.seed, _PURPOSE, server_round))

    def merged(self) -> UNet2DConditionModel:
        """Return a U-Net of its own, on the CPU, with W + B A for W."""
        from diffusers import UNet2DConditionModel

        products = {f"{layer}.weight": _product(module).cpu() for layer, module in self._layers.items()}
        weights = {}
        for name, value in self.unet.state_dict().items():
            if ".lora_A." not in name and ".lora_B." not in name:
                plain = name.replace(".base_layer.", ".")
                weights[plain] = value.cpu() + products[plain] if plain in products else value.cpu().clone()
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(weights, strict=True, assign=True)
        return unet

    @property
    def _frozen_a(self) -> bool:
        return self.adapters.frozen_a

    def _begin_anew(self, generator: torch.Generator) -> None:
        """Kaiming's uniform A as peft draws it, and B = 0."""
        shapes = factor_shapes(self._shapes, self.adapters.rank)
        for layer, module in self._layers.items():
            shape = shapes[layer + A]
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            _take(_factor_a(module), (2 * torch.rand(shape, generator=generator) - 1) * bound)
            _take(_factor_b(module), torch.zeros(shapes[layer + B]))
            _factor_a(module).weight.requires_grad_(not self._frozen_a)


def write_adapters(folder: Path, network: AdaptedUNet) -> None:
    """Write the adapters as ``load_lora_weights`` of diffusers' pipelines reads them, with the base's digest.

    All get the largest of their ranks: diffusers would scale those of others.
    """
    factors = network.factors()
    rank = max(len(factor) for name, factor in factors.items() if name.endswith(A))
    filled = {_OF_UNET + name: _filled(name, factor.cpu(), rank) for name, factor in factors.items()}
    save_file(filled, folder / ADAPTERS_FILE, {"format": "pt", _BASE: network.base})


def load_adapters(folder: Path, network: AdaptedUNet) -> AdaptedUNet:
    """Put the adapters of a folder into a network that has its own base.

    Raises:
        UserError: they are another base's.
        ValueError: they are damaged, or no adapters of such a network.
    """
    path = folder / ADAPTERS_FILE
    try:
        with safe_open(path, "pt") as file:
            theirs = (file.metadata() or {}).get(_BASE, "")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path.name}' is damaged ({error})") from error
    if theirs != network.base:
        raise UserError(
            f"{_BASE}: the adapters in '{folder}' are for the base model '{theirs:.64}', this one is '{network.base}':"
            " give the base that they were trained beside"
        )
    network.load_state_dict({name.removeprefix(_OF_UNET): factor for name, factor in read_weights(path).items()})
    return network


def _insert(unet: UNet2DConditionModel, layers: list[str], rank: int) -> dict[str, Any]:
    """Give layers an adapter each, and return peft's modules by name; nothing else of the U-Net is trained then."""
    from peft import LoraConfig, inject_adapter_in_model  # ten seconds that other runs do without

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), unet)
    return {layer: unet.get_submodule(layer) for layer in layers}


def _factor_a(module: Any) -> Any:
    return module.lora_A[_NAME]


def _factor_b(module: Any) -> Any:
    return module.lora_B[_NAME]


def _filled(name: str, factor: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a factor with zeros up to a rank, which leave the product as it is."""
    axis = 0 if name.endswith(A) else 1
    missing = list(factor.shape)
    missing[axis] = rank - missing[axis]
    return torch.cat([factor, factor.new_zeros(missing)], axis).contiguous()


def _take(layer: Any, values: torch.Tensor) -> None:
    """Give a factor its values, in place unless its rank changes: optimisers hold on to parameters."""
    old = layer.weight
    if old.shape == values.shape:
        with torch.no_grad():
            old.copy_(values)
    else:
        layer.weight = nn.Parameter(values.to(old).clone(), requires_grad=old.requires_grad)


def _product(module: Any) -> torch.Tensor:
    """Return B A in the shape of the layer's weights."""
    b, a = _factor_b(module).weight.detach(), _factor_a(module).weight.detach()
    product: torch.Tensor = b.flatten(1) @ a.flatten(1)
    return product.reshape(module.get_base_layer().weight.shape)
