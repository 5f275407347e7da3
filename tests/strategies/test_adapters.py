"""Runs that train adapters beside a base model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from flwr.app import ArrayRecord, Message, MetricRecord
from one_silo import Node, sample_request, settings_of
from safetensors.torch import load_file
from tiny_bases import CLASSES, unet_of, write_base
from tiny_runs import run_tiny, tiny_settings

from fedsynth.adapter_shapes import adapted_layers, factor_shapes
from fedsynth.api.pushing import _MODEL_FILES
from fedsynth.cli.planned import stacked_shapes
from fedsynth.config import RunConfig
from fedsynth.diffusion import exchanged_shapes
from fedsynth.diffusion.base_model import read_base_model
from fedsynth.messages import transport
from fedsynth.output import model_card, read_dataset
from fedsynth.spec import ImageSpec
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.updates import Update

SPEC = ImageSpec(1, 8, CLASSES)
SHAPES = adapted_layers({name: value.shape for name, value in unet_of().state_dict().items()}, "all")
LAYER = "conv_in"
needs_peft = pytest.mark.skipif(
    find_spec("peft") is None or find_spec("transformers") is None, reason="no transformers and peft"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def record_of(seed: int, rank: int, frozen_a: bool = False) -> ArrayRecord:
    generator = torch.Generator().manual_seed(seed)
    shapes = factor_shapes(SHAPES, rank, frozen_a)
    return transport.encode_tensors({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def product(factors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    b, a = (factors[f"{layer}.lora_{which}.weight"].double().flatten(1) for which in "BA")
    return b @ a


def strategy_of(aggregation: str, sent: ArrayRecord) -> FedAvg:
    settings: dict[str, Any] = {"base-model": "base", "train": "lora", "lora-rank": 2}
    strategy = FedAvg(lora_aggregation=aggregation)
    strategy._config = RunConfig.from_run_config({**settings, "strategy": "fedavg", "lora-aggregation": aggregation})
    strategy._census = None
    strategy._arrays, strategy._shapes = sent, {name: (array.shape, "float32") for name, array in sent.items()}
    return strategy


def combined(strategy: FedAvg, frozen_a: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What two silos' adapters become, of 30 and 10 images, and their exact mean by layer."""
    records = [record_of(seed, 2, frozen_a) for seed in (1, 2)]
    decoded = [transport.decode_tensors(record) for record in records]
    mean = {name: 0.75 * decoded[0][name].double() + 0.25 * decoded[1][name].double() for name in decoded[0]}
    if not frozen_a:
        mean |= {layer: 0.75 * product(decoded[0], layer) + 0.25 * product(decoded[1], layer) for layer in SHAPES}
    updates = [Update(k, f"silo-{k}", record, n) for k, (record, n) in enumerate(zip(records, (30, 10), strict=True))]
    return transport.decode_tensors(strategy.combine(1, updates)), mean


def test_the_mean_of_adapters_is_the_nearest_of_their_rank_and_says_what_it_keeps() -> None:
    strategy = strategy_of("svd", record_of(0, 2))
    found, exact = combined(strategy)
    _, values, _ = torch.linalg.svd(exact[LAYER])
    assert float((product(found, LAYER) - exact[LAYER]).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    metrics = MetricRecord()
    strategy.refine(1, ArrayRecord(), metrics)
    assert 0.5 < metrics["adapter-energy"] < 1


def test_stacked_adapters_are_added_to_those_that_were_sent() -> None:
    sent = record_of(0, 3)
    strategy = strategy_of("stack", sent)
    assert strategy.expected_shapes(0)[f"{LAYER}.lora_A.weight"][0] == (2, 2, 3, 3)
    assert strategy.expected_shapes(0)[f"{LAYER}.lora_B.weight"][0] == (8, 2, 1, 1)
    found, mean = combined(strategy)
    for layer in SHAPES:
        exact = product(transport.decode_tensors(sent), layer) + mean[layer]
        torch.testing.assert_close(product(found, layer), exact, atol=1e-4, rtol=1e-5)
    assert len(found[f"{LAYER}.lora_A.weight"]) == 7
    assert len(sent[f"{LAYER}.lora_A.weight"].shape) == 4, "what was sent is whole"


def test_with_a_frozen_a_the_mean_of_b_is_exact() -> None:
    found, exact = combined(strategy_of("freeze-a", record_of(0, 2, frozen_a=True)), frozen_a=True)
    for name, value in found.items():
        torch.testing.assert_close(value, exact[name].float())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_bytes_of_an_answer_are_known_before(dtype: str) -> None:
    shapes = factor_shapes(SHAPES, 8)
    record = transport.encode_tensors({name: torch.zeros(shape) for name, shape in shapes.items()}, dtype)
    pieces = transport.pack("arrays", record).values()
    assert transport.tensors_bytes(shapes, dtype) == sum(len(piece["packed"]) for piece in pieces)


def settings_with(folder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    given = {"base_model": str(base), "train": "lora", "lora_rank": 2, "learning_rate": 1e-2, **changes}
    return tiny_settings(folder, **given)


@needs_peft
def test_averaged_adapters_open_in_plain_diffusers_merged_and_by_themselves(base: Path, tmp_path: Path) -> None:
    folder = run_tiny(settings_with(tmp_path, base, strategy="fedavg"), report=False)
    model = folder.models / "global"
    merged = UNet2DConditionModel.from_pretrained(model / "unet").eval()
    plain = unet_of(0)
    adapted = unet_of(0)
    adapted.load_lora_adapter(load_file(model / "pytorch_lora_weights.safetensors"), prefix="unet")
    x, prompts = torch.randn(2, 2, 4, 4), load_file(model / "conditions.safetensors")["conditions"][:2]
    with torch.inference_mode():
        found, beside, before = (net(x, 300, prompts).sample for net in (merged, adapted.eval(), plain))
    torch.testing.assert_close(found, beside, atol=1e-5, rtol=1e-4)
    assert float((found - before).abs().max()) > 1e-3
    for name, value in plain.state_dict().items():
        changed = not torch.equal(merged.state_dict()[name], value)
        assert changed == (".attn" in name and name.endswith(".weight")), name
    assert len(read_dataset(folder.synthetic).images) == 30
    paths = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
    assert [path for path in paths if not _MODEL_FILES.fullmatch(path)] == ["integrity.json"]
    rows = folder.read_metrics()
    predicted = 3 * transport.tensors_bytes(
        factor_shapes(adapted_layers({n: v.shape for n, v in plain.state_dict().items()}, "attention"), 2), "float32"
    )
    sent = rows[-1]["bytes-up"] - rows[-2]["bytes-up"]
    assert predicted <= sent <= 1.01 * predicted + 3 * 1000, "besides the weights a kilobyte of what a silo says"
    assert 0.5 < rows[-1]["adapter-energy"] <= 1


@needs_peft
@pytest.mark.parametrize("aggregation", ["svd", "freeze-a", "stack"])
def test_bytes_of_every_round_are_as_predicted(aggregation: str, base: Path, tmp_path: Path) -> None:
    answered: list[int] = []

    def note(replies: list[Message]) -> list[Message]:
        answered.extend(transport.record_bytes(reply).get("arrays", 0) for reply in replies)
        return replies

    more = {"lora_targets": "all", "lora_rank": 4, "lora_aggregation": aggregation, "num_rounds": 3}
    settings = settings_with(tmp_path, base, strategy="fedavg", **more)
    rows = run_tiny(settings, tamper=note, report=False).read_metrics()
    config = RunConfig.from_run_config(settings)
    shapes = exchanged_shapes(config, SPEC)
    answer, question = (
        transport.tensors_bytes(found, "float32")
        for found in (shapes, stacked_shapes(config, shapes) if aggregation == "stack" else shapes)
    )
    weights = [size for size in answered if size]
    assert weights == [pytest.approx(answer, rel=0.01)] * 9
    down = (rows[-1]["bytes-down"] - rows[-2]["bytes-down"]) / 3
    assert question <= down <= 1.01 * question + 1500, "besides the weights what a silo is to do"


@needs_peft
@pytest.mark.parametrize("strategy", ["dfd", "pooled", "local", "centralised"])
def test_strategies_that_average_nothing_draw_with_adapters(strategy: str, base: Path, tmp_path: Path) -> None:
    folder = run_tiny(settings_with(tmp_path, base, strategy=strategy), report=False)
    made = [read_dataset(path.parent) for path in folder.synthetic.rglob("provenance.json")]
    assert len(made) == (3 if strategy == "local" else 1)
    for one in made:
        assert one.provenance["start"] == read_base_model(base).digest
        assert len(np.unique(one.images, axis=0)) == 30
    own = sorted(tmp_path.glob("state/*/models/*"))
    assert len(own) == (0 if strategy == "centralised" else 3)
    for model in own:
        factors = load_file(model / "pytorch_lora_weights.safetensors")
        assert all(value.any() for name, value in factors.items() if "lora_B" in name), "it has learnt"
    assert not list(tmp_path.glob("state/*/models/*/unet"))


@needs_peft
def test_stacked_rounds_add_up_to_what_the_silos_learnt(base: Path, tmp_path: Path) -> None:
    learnt: dict[str, torch.Tensor] = {}

    def note(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if "arrays" in transport.array_names(reply):
                factors = transport.decode_tensors(transport.array_record(reply, "arrays"))
                for layer in {name.rpartition(".lora_")[0] for name in factors}:
                    learnt[layer] = learnt.get(layer, 0) + product(factors, layer) / 3
        return replies

    settings = settings_with(tmp_path, base, strategy="fedprox", lora_aggregation="stack", lora_targets="all")
    folder = run_tiny(settings, tamper=note, report=False)
    merged, before = (
        load_file(folder.models / "global/unet/diffusion_pytorch_model.safetensors"),
        unet_of(0).state_dict(),
    )
    assert learnt.keys() == SHAPES.keys()
    for layer, change in learnt.items():
        expected = before[f"{layer}.weight"] + change.reshape(before[f"{layer}.weight"].shape).float()
        torch.testing.assert_close(merged[f"{layer}.weight"], expected, atol=1e-5, rtol=1e-4)
    adapted = unet_of(0)
    adapted.load_lora_adapter(load_file(folder.models / "global/pytorch_lora_weights.safetensors"), prefix="unet")
    x, prompts = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 8)
    whole = UNet2DConditionModel.from_pretrained(folder.models / "global/unet").eval()
    with torch.inference_mode():
        found, beside = (net(x, 300, prompts).sample for net in (whole, adapted.eval()))
    torch.testing.assert_close(beside, found, atol=1e-4, rtol=1e-3)


@needs_peft
@pytest.mark.parametrize("strategy", ["fedmedian", "fedavgm"])
def test_rules_on_single_weights_work_on_b_alone(strategy: str, base: Path, tmp_path: Path) -> None:
    folder = run_tiny(settings_with(tmp_path, base, strategy=strategy), report=False)
    factors = load_file(folder.models / "global/pytorch_lora_weights.safetensors")
    assert all(value.any() for value in factors.values())
    assert len(read_dataset(folder.synthetic).images) == 30


@needs_peft
def test_a_silo_keeps_its_adapters_alone_and_draws_beside_its_base(base: Path, tmp_path: Path) -> None:
    given = {"strategy": "pooled", "train": "lora", "lora_rank": 2, "learning_rate": 1e-2, "base_model": str(base)}
    settings = settings_of(tmp_path, block_out_channels="auto", copy_check=False, early_stop=False, **given)
    node = Node(settings, SPEC, partition_id=1)
    assert node.prepare().finished
    assert {path.name for path in node.own_model.iterdir()} >= {"pytorch_lora_weights.safetensors", "scheduler"}
    assert not (node.own_model / "unet").exists()
    drawn = node.ask(sample_request(node, [3, 8], [0, 1])).images
    again = node.again()
    assert again.prepare(0.001).finished, "found again"
    assert np.array_equal(again.ask(sample_request(again, [3, 8], [0, 1])).images, drawn)
    other = node.again(lora_rank=3)
    other.prepare()
    assert other.own_model != node.own_model
    saved = json.loads((node.own_model / "model_index.json").read_text())
    assert saved["unet"] == [None, None]


@needs_peft
@pytest.mark.parametrize("train", ["lora", "unet"])
def test_the_card_s_commands_draw_with_plain_diffusers(train: str, tmp_path: Path) -> None:
    from experiments.tiny_base import build

    build().save_pretrained(tmp_path / "tiny")
    settings = settings_with(tmp_path, tmp_path / "tiny", strategy="fedavg", train=train, image_size=16)
    if train == "unet":
        settings |= {"lora-rank": 8}
    folder = run_tiny(settings, report=False)
    made = read_dataset(folder.synthetic)
    card = model_card(made.classes, made.provenance, "us/set")
    program = card.split("```python\n")[1].split("```")[0]
    assert ("load_lora_weights" in program) == (train == "lora")
    program = program.replace("us/set", str(folder.models / "global")).replace('"tiny"', f'"{tmp_path / "tiny"}"')
    program = program.replace('"a photo of 0"', '"a photo of 0", num_inference_steps=2, output_type="np"')
    scope: dict[str, Any] = {}
    exec(program.replace("\npipeline(", "\nimages = pipeline("), scope)
    assert scope["images"].shape == (1, 16, 16, 3)
    assert read_base_model(tmp_path / "tiny").digest == made.provenance["start"]
