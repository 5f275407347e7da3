"""Runs that fine-tune a base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from acting_settings import acting
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from flwr.app import Message
from one_silo import Node, policy_file, sample_request, settings_of
from real_silos import real_settings, run_real, write_digits, write_silos
from safetensors.torch import load_file
from tiny_autoencoders import kl_of
from tiny_bases import CLASSES, embeddings_of, transformer_of, unet_of, write_base, write_labelled_base
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import codec_of, draw_initial_noise, make_scheduler, settle_base_model
from fedsynth.diffusion.base_model import read_base_model
from fedsynth.errors import RunError, UserError
from fedsynth.message_size import streamed_shards
from fedsynth.messages import PrepareRequest, transport
from fedsynth.output import RunFolder, model_card, read_dataset
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies import build_strategy
from strategies.base import Task
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.run.opening import check_partition, write_partition

SPEC = ImageSpec(1, 8, CLASSES)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def drawn_by_diffusers(unet: Any, base: Path, config: RunConfig, labels: torch.Tensor, purpose: tuple[str, ...]) -> Any:
    """The images that a run should draw, with networks and prompts as diffusers and the folder have them."""
    noise = draw_initial_noise(0, config.sampling.num_samples, (2, 4, 4))[: len(labels)]
    autoencoder, generator = AutoencoderKL.from_pretrained(base / "vae"), make_generator(0, *purpose)
    steps, bound = config.sampling.sampling_steps, codec_of(config, SPEC).bound
    scheduler = make_scheduler(config.recipe, steps, "ddpm", bound)
    prompts = torch.stack([embeddings_of(CLASSES)[f"a photo of {label}"] for label in labels.tolist()])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            noise = scheduler.step(unet(noise, t, prompts).sample, t, noise, generator=generator).prev_sample
        images = autoencoder.decode(noise / autoencoder.config.scaling_factor).sample.mean(1)
    return ((images + 1) * 127.5).round().clamp(0, 255).numpy()


def test_averaged_weights_open_in_plain_diffusers_and_draw_the_run_s_images(base: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="fedavg", base_model=str(base), learning_rate=1e-3)
    folder = run_tiny(settings, report=False)
    model = folder.models / "global"
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    before = unet_of(0).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in unet.state_dict().items() if "conv" in name)
    conditions = load_file(model / "conditions.safetensors")["conditions"]
    assert torch.equal(conditions, torch.stack(list(embeddings_of(CLASSES).values())))
    found = read_dataset(folder.synthetic)
    config, labels = settle_base_model(RunConfig.from_run_config(settings)), torch.arange(30) % 10
    expected = drawn_by_diffusers(unet, base, config, labels, ("sampling",))
    assert np.array_equal(found.labels, labels.numpy())
    assert np.abs(found.images[..., 0].astype(float) - expected).max() <= 1
    assert expected.std() > 5
    said = json.loads((folder.synthetic / "provenance.json").read_text())["provenance"]
    digest = read_base_model(base).digest
    assert (said["start"], folder.read_partition()["start"]) == (digest, digest)
    assert said["settings"]["base-model"] == base.name
    assert any(f"Training started from a base model (SHA-256 {digest})" in caveat for caveat in said["caveats"])
    assert str(base) not in json.dumps(said) + (model / "model_index.json").read_text()


def test_large_weights_of_a_base_travel_in_shards_and_make_the_same_model(base: Path, tmp_path: Path) -> None:
    def run(name: str, **given: Any) -> RunFolder:
        small: dict[str, Any] = {"num_samples": 10, "samples_per_client": 30, "train_steps": 2, "learning_rate": 1e-3}
        settings = tiny_settings(tmp_path / name, strategy="fedavg", base_model=str(base), **small, **given)
        return run_tiny(settings, report=False)

    whole, sharded = run("whole"), run("sharded", max_message_mb=0.02)
    assert "shards, above max-message-mb = 0.02" in sharded.log.read_text()
    one, other = (load_file(r.models / "global/unet/diffusion_pytorch_model.safetensors") for r in (whole, sharded))
    assert one.keys() == other.keys()
    assert all(torch.equal(layer, other[name]) for name, layer in one.items())
    assert images_of(sharded) == images_of(whole)
    # Adapters are small, and their factors belong together.
    settings = {"base-model": str(base), "strategy": "fedavg", "max-message-mb": 1e-6}
    assert streamed_shards(RunConfig.from_run_config({**settings, "train": "lora"}), {"a": (9,)}) == []


def test_silos_compose_the_noise_of_their_fine_tuned_copies(base: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="dfd", base_model=str(base), copy_check=False, early_stop=False)
    assert len(set(images_of(run_tiny(settings, report=False)).values())) == 30


@pytest.mark.parametrize("strategy", ["fedavg", "dfd", "pooled", "local", "centralised"])
def test_a_base_of_classes_is_fine_tuned_by_every_strategy_and_opens_in_diffusers(
    strategy: str, tmp_path: Path
) -> None:
    base = write_labelled_base(tmp_path / "base")
    short: dict[str, Any] = {"num_samples": 10, "copy_check": False, "early_stop": False, "learning_rate": 1e-3}
    given = acting(short, {"strategy": strategy, "base_model": str(base)})
    folder = run_tiny(tiny_settings(tmp_path, **given), report=False)
    log = folder.log.read_text()
    assert "networks start from a base model" in log
    assert "classes that it knows: 7\n" in log
    if strategy != "local":
        assert len(set(images_of(folder).values())) == 10
    if strategy in ("fedavg", "centralised"):
        model = DiTTransformer2DModel.from_pretrained(folder.models / "global" / "transformer")
        before = transformer_of(0).state_dict()
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert any("to_q" in name for name in moved)
        card = model_card(CLASSES, {"settings": {"base-model": "dit"}}, str(folder.models / "global"), True)
        scope: dict[str, Any] = {}
        exec(card.split("```python\n")[1].split("```")[0], scope)
        assert scope["transformer"].config["num_embeds_ada_norm"] == 10


def node_of(folder: Path, base: Path | str, node_config: dict[str, Any] | None = None, **changes: Any) -> Node:
    given = {"strategy": "pooled", "block_out_channels": "auto", "copy_check": False, "early_stop": False}
    settings = settings_of(folder, base_model=str(base), **given, **changes)
    return Node(settings, SPEC, **(node_config or {"partition_id": 1}))


def test_a_silo_s_own_model_starts_from_the_base_and_draws_by_prompts(base: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(base, tmp_path / "moved")
    node = node_of(tmp_path, base, learning_rate=1e-7)
    assert node.prepare().finished
    unet, start = UNet2DConditionModel.from_pretrained(node.own_model / "unet"), unet_of(0).state_dict()
    assert max(float((value - start[name]).abs().max()) for name, value in unet.state_dict().items()) < 1e-5
    drawn = node.ask(sample_request(node, [3, 8, 3], [0, 1, 2])).images[..., 0].float().numpy()
    config = settle_base_model(node.config)
    expected = drawn_by_diffusers(unet, base, config, torch.tensor([3, 8, 3]), ("sampling", "silo-1"))
    assert np.abs(drawn - expected).max() <= 1
    again = node_of(tmp_path, moved, learning_rate=1e-7)
    assert again.prepare(0.001).finished, "found again wherever the base lies"
    other = node_of(tmp_path, base, learning_rate=1e-7, prompt="{class}, a photo of it")
    assert "has no embeddings of prompt '0, a photo of it'" in other.refusal(
        PrepareRequest(spec=SPEC, train_seconds=1.0)
    )


def test_a_real_silo_has_a_copy_of_its_own_and_one_that_differs_is_refused(base: Path, tmp_path: Path) -> None:
    images, policy = write_digits(tmp_path / "images", range(10), 0, 2), policy_file(tmp_path / "policy")
    other = shutil.copytree(base, tmp_path / "other")
    unet_of(1).save_pretrained(other / "unet")
    digests = [read_base_model(folder).digest for folder in (base, other)]
    request = PrepareRequest(spec=SPEC, start=digests[0])
    real = {"data_path": str(images), "policy_path": policy}
    own, theirs, none = (
        node_of(tmp_path, "/the/server/s", {**real, **more})
        for more in ({"base_model": str(base)}, {"base_model": str(other)}, {})
    )
    assert own.ask(request).num_examples > 0
    assert (
        f"base-model: the run's networks start from the base model '{digests[0]}', that of this silo is '{digests[1]}':"
        " give the silo the run's (--base-model)"
    ) in theirs.refusal(request)
    assert "this silo has none: start it with --base-model" in none.refusal(request)
    shutil.rmtree(other / "vae")
    kl_of(1).save_pretrained(other / "vae")
    codec = codec_of(RunConfig.from_run_config({"base-model": str(base), "strategy": "pooled"}), SPEC).digest
    refusal = theirs.refusal(PrepareRequest(spec=SPEC, codec=codec))
    assert "codec: the run's networks see 'autoencoder " in refusal
    assert "give the silo the run's base model (--base-model)" in refusal


def test_a_policy_counts_the_whole_network_and_says_what_of_it_is_trained(base: Path, tmp_path: Path) -> None:
    images = write_digits(tmp_path / "images", range(10), 0, 2)
    whole = sum(value.numel() for value in unet_of(0).state_dict().values())
    projections = [v.shape for n, v in unet_of(0).state_dict().items() if ".attn" in n and n.endswith(".weight")]
    adapters = 3 * sum(map(sum, projections))
    real = {"data_path": str(images), "base_model": str(base)}
    strict = {**real, "policy_path": policy_file(tmp_path / "policy", network_parameters=whole - 1)}
    said = f"line 'network-parameters = {whole - 1}': the run's network has {whole}"
    beside = f", which all count for memory and time although it trains {adapters} in adapters beside them"
    question = PrepareRequest(spec=SPEC, train_seconds=9.0)
    assert node_of(tmp_path, base, strict).refusal(question).endswith(said)
    assert node_of(tmp_path, base, strict, train="lora", lora_rank=3).refusal(question).endswith(said + beside)
    assert not list(tmp_path.rglob("models/*"))


def test_a_silo_with_another_base_ends_the_run_by_name_before_anybody_trains(base: Path, tmp_path: Path) -> None:
    silos = write_silos(tmp_path / "images")
    paths = {name: base for name in silos} | {"south": write_base(tmp_path / "other", seed=1)}
    digests = [read_base_model(path).digest for path in (base, paths["south"])]
    settings = real_settings(tmp_path, base_model=str(base), strategy="fedavg")
    with pytest.raises(RunError) as caught:
        run_real(settings, silos, **{name: {"base-model": str(path)} for name, path in paths.items()})
    assert (
        f"south: UserError: base-model: the run's networks start from the base model '{digests[0]}', that of this silo"
        f" is '{digests[1]}'"
    ) in str(caught.value)
    assert not {"north:", "east:"} & set(str(caught.value).split())
    assert not list(tmp_path.rglob("models/*"))


def _no_autoencoder(folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder / "vae")
    return {}


def _few_prompts(folder: Path) -> dict[str, Any]:
    (folder / "prompts.json").write_text('{"0": "zero"}')
    return {}


def _odd_size(folder: Path) -> dict[str, Any]:
    return {"image-size": 9}


def _a_name(folder: Path) -> dict[str, Any]:
    return {"base-model": "stabilityai/stable-diffusion-2-1"}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_no_autoencoder, "base-model = '.*': holds no autoencoder"),
        (_few_prompts, "base-model = '.*': 'prompts.json' has no prompt of class '1'"),
        (_odd_size, "image-size = 9: must be a multiple of 2"),
        (_a_name, "base-model = '.*stabilityai/stable-diffusion-2-1': there is no such folder"),
    ],
)
def test_what_cannot_be_used_ends_a_run_before_a_silo_is_asked(
    spoil: Callable[[Path], dict[str, Any]], problem: str, base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    settings = tiny_settings(tmp_path, strategy="fedavg", base_model=str(copy)) | spoil(copy)
    asked: list[Message] = []

    def note(replies: list[Message]) -> list[Message]:
        asked.extend(replies)
        return replies

    with pytest.raises(UserError, match=problem):
        run_tiny(settings, note, report=False)
    assert not asked
    assert not (tmp_path / "state").exists()


def test_a_silo_s_own_architecture_has_no_place_beside_a_base_model(base: Path, tmp_path: Path) -> None:
    node = node_of(tmp_path, base, {"partition_id": 1, "model_path": str(tmp_path)})
    assert "model-path: a silo's own model in a run with a base-model is not built" in node.refusal(
        PrepareRequest(spec=SPEC)
    )


def task_of(folder: Path, base: Path, strategy: str) -> Task:
    settings = settings_of(folder, base_model=str(base), strategy=strategy, block_out_channels="auto", num_rounds=2)
    config = settle_base_model(RunConfig.from_run_config(settings))
    federation = load_federation(config)
    return Task(config, federation.spec, Census.unknown([1, 2, 3], 10), torch.arange(6), federation)


@pytest.mark.parametrize("strategy", ["fedavg", "centralised"])
def test_what_the_server_begins_with_is_the_base(strategy: str, base: Path, tmp_path: Path) -> None:
    todo = task_of(tmp_path, base, strategy)
    arrays = build_strategy(todo.config)[0].begin(todo, cast(Exchange, None))
    found, theirs = transport.decode_tensors(arrays), unet_of(0).state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.items())


def test_a_run_goes_on_from_its_own_base_only(base: Path, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    write_partition(folder, task_of(tmp_path, base, "fedavg"))
    check_partition(folder, task_of(tmp_path, shutil.copytree(base, tmp_path / "moved"), "fedavg"))
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"base-model: the base model is '.*', the run to resume has '.*'"):
        check_partition(folder, task_of(tmp_path, other, "fedavg"))
