from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from one_silo import SPEC, context_of

from clients.context import LEAST_FREE_BYTES, SiloContext
from fedsynth.data import image_cache
from fedsynth.errors import FilesError, UserError
from fedsynth.messages import Sender
from fedsynth.spec import ImageSpec

THREE = {"num-clients": 3, "partition": "iid", "samples-per-client": 30}


def silo_of(settings: dict[str, Any] | None = None, **node_config: Any) -> SiloContext:
    return SiloContext(context_of(settings, **node_config))


@pytest.mark.parametrize(
    ("node", "sender"),
    [
        ({"partition_id": 3, "num_partitions": 5}, Sender(3, "silo-3", 3)),
        ({"silo_name": "north", "data_path": "x"}, Sender(0, "north")),
        ({"data_path": "some/x"}, Sender(0, "x")),
        ({"data_path": "x", "partition_id": 3}, Sender(0, "x")),
    ],
)
def test_names_and_senders(node: dict[str, Any], sender: Sender) -> None:
    silo = silo_of(**node)
    assert (silo.name, silo.sender) == (sender.name, sender)


def test_own_folder_goes_before_the_partition_and_is_brought_into_the_run_s_format(
    image_folder: Path,
) -> None:
    spec = ImageSpec(3, 16, ("both", "even", "odd"))
    context = silo_of(data_path=str(image_folder), silo_name="clinic", partition_id=0)
    silo = context.images(spec)
    assert silo.name == "clinic"
    assert silo.train.images.shape[1:] == (16, 16, 3)
    assert (silo.train.label_counts() + silo.holdout.label_counts()).tolist() == [0, 6, 4]
    assert len(silo.holdout) == 1
    assert context.images(spec) is silo, "opened once"


def test_a_silo_s_large_images_lie_decoded_in_its_state_folder(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = silo_of(data_path=str(image_folder), silo_name="clinic").images(SPEC)
    monkeypatch.setattr(image_cache, "LARGE_BYTES", 1)
    given = {"state_path": str(tmp_path / "state"), "silo_name": "mapped"}
    mapped = silo_of(data_path=str(image_folder), **given).images(SPEC)
    assert isinstance(mapped.train.images, np.memmap)
    assert mapped.train.fingerprint() == in_memory.train.fingerprint()
    assert len(list((tmp_path / "state" / "mapped" / "images").iterdir())) == 1


def test_bad_images_are_refused_or_skipped_as_configured(image_folder: Path) -> None:
    path = image_folder
    (path / "odd" / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"torn\.png"):
        silo_of(data_path=str(path)).images(SPEC)
    settings = {"dataset": "silos", "skip-bad-images": True, "holdout-fraction": 0.0}
    lenient = silo_of(settings, data_path=str(path))
    assert np.bincount(lenient.images(SPEC).train.labels).tolist() == [6, 4]


def test_groups_of_a_silo_s_own_table_are_never_split(image_folder: Path) -> None:
    files = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png"))
    patients = {file: f"jane-{number % 5}" for number, file in enumerate(files)}
    rows = [f"{file},{patient}" for file, patient in patients.items()]
    (image_folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    settings = {"dataset": "silos", "holdout-fraction": 0.2}
    context = silo_of(settings, data_path=str(image_folder), group_column="patient")
    silo = context.images(SPEC)
    assert silo.train.groups is not None
    assert silo.holdout.groups is not None
    assert {*silo.train.groups, *silo.holdout.groups} == {*patients.values()}
    assert not {*silo.train.groups} & {*silo.holdout.groups}
    assert len({*silo.holdout.groups}) == 1
    assert context.largest_holdout == 0.4
    plain = silo_of(settings, data_path=str(image_folder))
    assert (plain.images(SPEC).train.groups, plain.largest_holdout) == (None, 0.2)
    (image_folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows[1:]]))
    with pytest.raises(FilesError, match="no row for 1 images") as caught:
        silo_of(settings, data_path=str(image_folder), group_column="patient").images(SPEC)
    assert "patient" not in caught.value.elsewhere


def test_silo_without_images_is_told_what_to_give() -> None:
    with pytest.raises(UserError, match="neither 'data-path' nor 'partition-id'"):
        silo_of().images(SPEC)
    with pytest.raises(UserError, match=r"num-clients = 3, but there is a partition 3: set num-supernodes"):
        silo_of(THREE, partition_id=3).images(SPEC)


def test_state_lies_in_a_folder_of_the_silo_s_own(tmp_path: Path) -> None:
    settings = {"state-dir": str(tmp_path)}
    assert silo_of(settings, partition_id=3).state == tmp_path / "silo-3"
    assert silo_of(settings, silo_name="St. Mary/2", data_path="x").state == tmp_path / "St._Mary_2"
    assert silo_of(silo_name="a", state_path=str(tmp_path / "own")).state == tmp_path / "own" / "a"
    assert silo_of(partition_id=0).state.is_absolute()


def test_silo_describes_its_folder(image_folder: Path) -> None:
    path = str(image_folder)
    assert silo_of(data_path=path).describe() == ImageSpec(1, 8, ("even", "odd"))
    assert silo_of({"image-size": 16}, data_path=path).describe().size == 16
    with pytest.raises(UserError, match="needs 'data-path' in the node config"):
        silo_of(partition_id=0).describe()


def test_what_lies_in_the_folder_of_images_is_named_at_the_silo_only(image_folder: Path) -> None:
    (image_folder / "odd" / "jane-doe.png").write_bytes(b"torn")
    silo = silo_of(data_path=str(image_folder))
    with pytest.raises(FilesError, match="jane") as of_a_file:
        silo.images(SPEC)
    (image_folder / b"jane-d\xe9".decode("utf-8", "surrogateescape")).mkdir()
    with pytest.raises(FilesError, match="jane") as of_a_folder:
        silo.describe()
    for caught in (of_a_file, of_a_folder):
        assert "jane" not in caught.value.elsewhere
        assert str(image_folder) not in caught.value.elsewhere
    for read in (silo.images, silo.released):
        with pytest.raises(FilesError, match="jane"):
            read(SPEC)


def test_errors_of_a_full_disk_name_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = silo_of(silo_name="a", state_path=str(tmp_path))
    silo.state.mkdir()
    said = r"state folder .*: No space left on device: make room .* --state-path"
    with pytest.raises(UserError, match=said), silo.explained_state():
        raise OSError(28, "No space left on device")
    # Some libraries do not say why they could not write.
    free = [LEAST_FREE_BYTES - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    with pytest.raises(UserError, match="no space left on that disk"), silo.explained_state():
        raise RuntimeError("PytorchStreamWriter failed writing file")
    free[0] = LEAST_FREE_BYTES
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"), silo.explained_state():
        raise RuntimeError("PytorchStreamWriter failed writing file")
    with pytest.raises(UserError, match="as it was"), silo.explained_state():
        raise UserError("as it was")


def test_the_autoencoder_of_a_real_silo_is_its_own_and_never_the_server_s_path() -> None:
    run = {"autoencoder": "/the/server/s", "num-clients": 5}
    assert silo_of(run, data_path="x", autoencoder_path="/own").config.model.autoencoder == "/own"
    assert silo_of(run, partition_id=3).config.model.autoencoder == "/the/server/s"
    assert silo_of({}, data_path="x", autoencoder_path="/own").config.model.autoencoder == ""
    with pytest.raises(UserError, match=r"the run works in latents, .*: start it with --autoencoder-path"):
        silo_of(run, data_path="x", partition_id=3)


def test_equal_values_of_another_type_are_another_configuration() -> None:
    assert silo_of({"early-stop": True}).config.training.early_stop is True
    assert silo_of({"early-stop": True}).config is silo_of({"early-stop": True}).config, "parsed once"
    with pytest.raises(UserError, match="early-stop"):
        silo_of({"early-stop": 1})
    assert isinstance(silo_of({"learning-rate": 1}).config.recipe.learning_rate, float)
