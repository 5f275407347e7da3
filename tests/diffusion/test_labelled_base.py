"""A base model with a table of classes: which rows a run's classes get, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from tiny_bases import CLASSES, config_of, transformer_of, write_labelled_base

from fedsynth.diffusion import codec_of, count_parameters, initial_unet, settle_base_model
from fedsynth.diffusion.base_model import read_base_model
from fedsynth.diffusion.denoiser import LabelledTransformer
from fedsynth.diffusion.initial import exchanged_shapes
from fedsynth.diffusion.pipeline import load_saved_network, save_model
from fedsynth.diffusion.samplers import lasting_scheduler
from fedsynth.diffusion.sampling import network_output
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 16, CLASSES)
TABLES = [f"transformer_blocks.{block}.norm1.emb.class_embedder.embedding_table.weight" for block in range(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "copy")


def network_of(folder: Path, spec: ImageSpec = SPEC, **changes: Any) -> LabelledTransformer:
    network = initial_unet(config_of(folder, **changes), spec)
    assert isinstance(network, LabelledTransformer)
    return network.eval()


def inputs(rows: int = 3, side: int = 8) -> torch.Tensor:
    return torch.randn(rows, 2, side, side, generator=torch.Generator().manual_seed(0))


def test_a_class_that_the_base_knows_is_asked_as_the_base_asks_it(base: Path) -> None:
    network, plain = network_of(base), DiTTransformer2DModel.from_pretrained(base / "transformer").eval()
    x, t = inputs(), torch.tensor([500, 3, 500])
    with torch.inference_mode():
        # Class "7" is called so in the second row of the base; the last row stands for none.
        for label, row in ((7, 1), (len(CLASSES), 3)):
            expected = plain(x, t, torch.full((3,), row)).sample[:, :2]
            assert torch.equal(network(x, t, torch.full((3,), label)).sample, expected)
        one, three = (network(x, t, torch.full((3,), 7)).sample for t in (500, torch.tensor([500] * 3)))
    assert torch.equal(one, three)


def test_other_classes_start_near_none_each_with_rows_of_its_own_that_the_seed_decides(base: Path) -> None:
    tables = network_of(base).state_dict()[TABLES[0]], network_of(base, seed=1).state_dict()[TABLES[0]]
    nothing = transformer_of().state_dict()[TABLES[0]][-1]
    fresh = torch.stack([tables[0][k] - nothing for k in range(10) if k != 7])
    assert 0.01 < float(fresh.std()) < 0.03
    assert float(torch.pdist(fresh).min()) > 0.02
    assert torch.equal(tables[0], network_of(base).state_dict()[TABLES[0]])
    assert not torch.equal(tables[0][0], tables[1][0])
    assert torch.equal(tables[0][7], tables[1][7])
    assert read_base_model(base).known(CLASSES) == ("7",)


def test_a_file_calls_the_run_s_classes_by_the_base_s(copy: Path) -> None:
    before = read_base_model(copy).digest
    (copy / "prompts.json").write_text(json.dumps({"0": "GOLDFISH ", "1": "Tinca tinca", "2": "unicorn"}))
    found = read_base_model(copy)
    assert found.known(CLASSES) == ("0", "1", "7")
    assert found.digest != before
    rows, plain = network_of(copy).state_dict()[TABLES[1]], transformer_of().state_dict()[TABLES[1]]
    assert torch.equal(rows[:2], plain[[2, 0]])


def test_weights_are_counted_and_averaged_with_the_run_s_classes(base: Path) -> None:
    config, network = config_of(base, strategy="fedavg"), network_of(base)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert exchanged_shapes(config, SPEC) == shapes
    assert shapes[TABLES[0]] == (11, 16)
    assert count_parameters(config, SPEC) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("side", [8, 4])
def test_places_are_those_that_diffusers_computes_for_such_images(side: int, base: Path) -> None:
    network = network_of(base, ImageSpec(1, 2 * side, CLASSES))
    plain = transformer_of()
    with torch.inference_mode():
        expected = plain(inputs(side=side), torch.tensor([9] * 3), torch.tensor([1] * 3)).sample[:, :2]
        found = network(inputs(side=side), 9, torch.tensor([7] * 3)).sample
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_label_is_dropped_by_torch_s_own_generator(base: Path) -> None:
    network = network_of(base).train()
    state = torch.get_rng_state()
    several = [network(inputs(), 9, torch.tensor([7] * 3)).sample for _ in range(8)]
    assert all(torch.equal(one, several[0]) for one in several)
    assert torch.equal(state, torch.get_rng_state())


def test_guidance_goes_away_from_no_class(base: Path) -> None:
    x, labels = inputs(), torch.tensor([7, 0, 7])
    guided = network_output(network_of(base, guidance=3.0))(x, 9, labels)
    network = network_of(base)
    plain = network_output(network)(x, 9, labels)
    nothing = network_output(network)(x, 9, torch.full((3,), 10))
    assert torch.allclose(guided, nothing + 3 * (plain - nothing), atol=1e-6)
    assert not torch.allclose(guided, plain, atol=1e-4)


def test_a_saved_network_opens_here_and_in_diffusers(base: Path, tmp_path: Path) -> None:
    config, network = settle_base_model(config_of(base)), network_of(base)
    save_model(tmp_path, network, lasting_scheduler(config.recipe), codec_of(config, SPEC), CLASSES)
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    ours = load_saved_network(tmp_path).eval()
    x, labels = inputs(), torch.tensor([7, 0, 9])
    with torch.inference_mode():
        expected = network(x, 9, labels).sample
        assert torch.equal(theirs(x, torch.tensor([9] * 3), labels).sample[:, :2], expected)
        assert torch.equal(ours(x, 9, labels).sample, expected)
    assert theirs.config["num_embeds_ada_norm"] == 10


def _unnamed(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"id2label": ["tench"]}))


def _short_table(folder: Path) -> None:
    weights = transformer_of().state_dict()
    weights[TABLES[1]] = weights[TABLES[1]][:3].clone()
    save_file(weights, folder / "transformer/diffusion_pytorch_model.safetensors")


def _other_channels(folder: Path) -> None:
    transformer_of(out_channels=3).save_pretrained(folder / "transformer")


def _huge(folder: Path) -> None:
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 10**6}))


def _patchless(folder: Path) -> None:
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size": 0}))


def _pickled(folder: Path) -> None:
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_unnamed, "id2label in 'model_index.json' must name classes by number"),
        (_short_table, "a table of classes has shape (3, 16), not a row for each of its classes and one for none"),
        (_other_channels, "its network takes 2 channels and answers 3, and latents have 2"),
        (_huge, "sample_size = 1000000: must be a whole number from 1 to 1024"),
        (_patchless, "patch_size = 0: must be a whole number from 1 to 64"),
        (_pickled, "pickled weights are not read, as they can run code"),
    ],
)
def test_what_cannot_be_used_is_refused_by_key(spoil: Callable[[Path], None], problem: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(UserError) as caught:
        initial_unet(config_of(copy), SPEC)
    assert str(caught.value).startswith(f"base-model = '{copy}': ")
    assert problem in str(caught.value)


def test_what_does_not_go_with_classes_is_refused_by_name(base: Path) -> None:
    with pytest.raises(UserError, match="train = 'lora' with a base model of classes"):
        network_of(base, train="lora")
    with pytest.raises(UserError, match="image-size = 18: must be a multiple of 4 for this base model"):
        network_of(base, ImageSpec(1, 18, CLASSES))
