"""Whole runs whose networks see latents of an autoencoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from interrupted_runs import KilledError, die, in_round, resumed
from one_silo import Node, epsilon_request, settings_of
from real_silos import real_settings, run_real, write_silos
from tiny_autoencoders import kl_of
from tiny_runs import images_of, run_tiny, tiny_settings

import fedsynth.diffusion.codec
from fedsynth.cli import main
from fedsynth.config import RunConfig
from fedsynth.data.federation import load_federation
from fedsynth.diffusion import ClassConditionalDDPMPipeline, codec_of
from fedsynth.errors import RunError, UserError
from fedsynth.evaluation.memorisation import Forms, memorisation_of_images
from fedsynth.latent import Autoencoder
from fedsynth.messages import PrepareRequest
from fedsynth.output import read_dataset
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, tuple("0123456789"))


def write(folder: Path, seed: int = 0) -> Path:
    kl_of(seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("autoencoder"))


@pytest.mark.parametrize("strategy", ["dfd", "pooled", "fedavg"])
def test_runs_in_latents_end_in_images(strategy: str, autoencoder: Path, tmp_path: Path) -> None:
    measured = {"evaluate": strategy == "pooled", "feature_extractor": "pixels", "classifiers": "logistic-regression"}
    settings = tiny_settings(tmp_path, strategy=strategy, autoencoder=str(autoencoder), **measured)
    folder = run_tiny(settings, report=False)
    images = images_of(folder)
    assert len(images) == 30
    assert len(set(images.values())) > 1
    codec = codec_of(RunConfig.from_run_config(settings), SPEC)
    assert codec.shape == (2, 4, 4)
    assert folder.read_partition()["codec"] == codec.digest
    said = json.loads((folder.synthetic / "provenance.json").read_text())["provenance"]
    assert said["codec"] == codec.digest
    if strategy == "pooled":
        results, drawn = json.loads(folder.results.read_text()), read_dataset(folder.synthetic).images
        federation = load_federation(RunConfig.from_run_config(settings))
        seen = federation.union(RunConfig.from_run_config(settings)).images
        expected = memorisation_of_images(drawn, seen, federation.test.images, Forms(reconstruct=codec.reconstruct))
        assert {name: results[name] for name in expected.row()} == pytest.approx(expected.row())


def test_a_saved_model_names_its_autoencoder_and_no_folder(
    autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(tmp_path, strategy="fedavg", autoencoder=str(autoencoder), num_samples=4)
    model = run_tiny(settings, report=False).models / "global"
    said = json.loads((model / "model_index.json").read_text())
    codec = codec_of(RunConfig.from_run_config(settings), SPEC)
    assert (said["codec"], said["image_channels"]) == (codec.digest, 1)
    assert str(tmp_path) not in (model / "model_index.json").read_text()
    pipeline = ClassConditionalDDPMPipeline.from_pretrained(model)
    drawn = pipeline([1, 2], torch.Generator().manual_seed(0), 4, autoencoder=autoencoder).images
    assert [(image.mode, image.size) for image in drawn] == [("L", (8, 8))] * 2
    with pytest.raises(UserError, match="autoencoder: the saved model is of latents; give the folder of 'autoencoder"):
        pipeline([1, 2])
    words = ["draw", str(model), "--output", str(tmp_path / "more"), "--num-samples", "5", "--device", "cpu"]
    assert main(words) == 2
    assert "autoencoder: the saved model is of latents" in capsys.readouterr().err
    assert main([*words, "--autoencoder", str(autoencoder)]) == 0
    more = read_dataset(tmp_path / "more")
    assert more.images.shape == (5, 8, 8, 1)
    assert more.provenance["settings"]["codec"] == codec.digest
    assert str(autoencoder) not in json.dumps(more.provenance)
    other = write(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=f"autoencoder = '{other}': it is 'autoencoder .*, the saved model is of"):
        pipeline([1, 2], autoencoder=other)


def test_the_same_run_gives_the_same_bits_wherever_the_autoencoder_lies(autoencoder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(autoencoder, tmp_path / "elsewhere")
    runs = [
        run_tiny(tiny_settings(tmp_path / name, strategy="pooled", autoencoder=str(path)), report=False)
        for name, path in (("a", autoencoder), ("b", moved))
    ]
    assert images_of(runs[0]) == images_of(runs[1])
    keys = [sorted(path.name for path in (tmp_path / name / "state").glob("*/models/*")) for name in "ab"]
    assert keys[0] == keys[1] != []


def test_a_silo_encodes_its_images_once_whatever_trains_on_them(autoencoder: Path, tmp_path: Path) -> None:
    def asked(strategy: str, batch: int) -> int:
        encode = Autoencoder.encode
        settings = tiny_settings(tmp_path, strategy=strategy, autoencoder=str(autoencoder), batch_size=batch)
        settings["run-name"] = f"{strategy}-{batch}"
        with (
            mock.patch.object(fedsynth.diffusion.codec, "_kept", fedsynth.diffusion.codec._KeptLatents(2**20)),
            mock.patch.object(Autoencoder, "encode", autospec=True, side_effect=encode) as encoded,
        ):
            run_tiny(settings, report=False)
        return sum(len(call.args[1]) for call in encoded.call_args_list if call.args[1].dtype == torch.float32)

    # 6 steps of 64 draw all 54 images of a silo, and 6 are held out.
    assert asked("pooled", 64) == 3 * 60
    assert asked("pooled", 63) == 0, "other models of the same images"
    assert asked("fedavg", 32) == 0
    assert {path.parts[-3] for path in tmp_path.glob("state/*/images/*.latents")} == {"silo-0", "silo-1", "silo-2"}


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_silos(tmp_path_factory.mktemp("silos"))


def test_real_silos_have_their_own_copies(autoencoder: Path, silos: dict[str, Path], tmp_path: Path) -> None:
    own = {name: {"autoencoder-path": str(shutil.copytree(autoencoder, tmp_path / name))} for name in silos}
    settings = real_settings(tmp_path, strategy="dfd", autoencoder=str(autoencoder))
    assert len(images_of(run_real(settings, silos, **own))) == 30


def test_a_silo_with_another_autoencoder_is_named_with_both_digests(
    autoencoder: Path, silos: dict[str, Path], tmp_path: Path
) -> None:
    spec = ImageSpec(1, 8, tuple("0123"))
    paths = {"north": autoencoder, "south": write(tmp_path / "other", seed=1), "east": autoencoder}
    settings = real_settings(tmp_path, autoencoder=str(autoencoder))
    digests = [
        codec_of(RunConfig.from_run_config({**settings, "autoencoder": str(path)}), spec).digest
        for path in (autoencoder, paths["south"])
    ]
    own = {name: {"autoencoder-path": str(path)} for name, path in paths.items()}
    with pytest.raises(RunError) as caught:
        run_real(settings, silos, **own)
    assert f"south: UserError: codec: the run's networks see '{digests[0]}'" in str(caught.value)
    assert f"those of this silo would see '{digests[1]}'" in str(caught.value)
    assert not list(tmp_path.rglob("models/*"))


def test_a_silo_brings_a_model_of_the_same_latents(autoencoder: Path, tmp_path: Path) -> None:
    def node(seed: int, **changes: Any) -> Node:
        vae = write(tmp_path / f"vae-{seed}", seed)
        settings = settings_of(tmp_path, strategy="dfd", copy_check=False, autoencoder=str(vae))
        return Node(settings, SPEC, partition_id=1, **changes)

    trained = node(0)
    trained.prepare()
    brought = node(0, model_path=str(trained.own_model))
    assert brought.prepare().finished
    question = epsilon_request(samples=torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(brought.ask(question).epsilon, trained.ask(question).epsilon, atol=1e-5)
    refused = node(1, model_path=str(trained.own_model)).refusal(PrepareRequest(spec=SPEC))
    assert "its codec is 'autoencoder " in refused
    assert "give a model of the same autoencoder" in refused


def test_a_silo_without_autoencoder_is_told_to_have_one_and_opens_no_path_of_the_servers(
    autoencoder: Path, silos: dict[str, Path], tmp_path: Path
) -> None:
    own = {name: {"autoencoder-path": str(autoencoder)} for name in ("north", "south")}
    with pytest.raises(RunError, match="east: UserError: codec = 'autoencoder': the run works in latents") as caught:
        run_real(real_settings(tmp_path, autoencoder=str(autoencoder)), silos, **own)
    assert "--autoencoder-path" in str(caught.value)


def test_a_run_goes_on_with_its_own_autoencoder_only(autoencoder: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="fedavg", autoencoder=str(autoencoder))
    with pytest.raises(KilledError):
        run_tiny(settings, in_round(2, die))
    other = write(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=f"codec: the autoencoder in '{other}' is 'autoencoder .* the run to resume has"
    ):
        run_tiny(resumed({**settings, "autoencoder": str(other)}))
    with pytest.raises(UserError, match=r"codec: no autoencoder is given, the run to resume has 'autoencoder .*'"):
        run_tiny(resumed({**settings, "autoencoder": ""}))
    moved = shutil.copytree(autoencoder, tmp_path / "moved")
    assert len(images_of(run_tiny(resumed({**settings, "autoencoder": str(moved)}), report=False))) == 30


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"codec": "autoencoder"}, "codec = 'autoencoder' needs an autoencoder"),
        ({"codec": "pixels", "autoencoder": "somewhere"}, "autoencoder = 'somewhere': acts with codec = 'autoencoder'"),
        ({"autoencoder": "/no/where"}, "autoencoder = '/no/where': there is no such folder"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_silo(
    changes: dict[str, str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        run_tiny(tiny_settings(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_images_of_a_size_that_is_no_multiple_are_refused(autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image-size = 9: must be a multiple of 2 for this autoencoder"):
        run_tiny(tiny_settings(tmp_path, autoencoder=str(autoencoder), image_size=9))
