from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from clients.context import identity, open_silo, silo_name, state_folder
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.errors import UserError
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("even", "odd"))
CONFIG = RunConfig.from_run_config({"num-clients": 3, "partition": "iid", "samples-per-client": 30})


def context(**node_config: Any) -> Context:
    given = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(run_id=1, node_id=77, node_config=given, state=RecordDict(), run_config={})


@pytest.mark.parametrize(
    ("node", "name", "record"),
    [
        ({"partition_id": 3, "num_partitions": 5}, "silo-3", {"partition-id": 3}),
        ({"silo_name": "north", "data_path": "x"}, "north", {"silo-name": "north"}),
        ({"data_path": "some/x"}, "x", {"silo-name": "x"}),
        ({}, "node-77", {"silo-name": "node-77"}),
        ({"data_path": "x", "partition_id": 3}, "x", {"silo-name": "x"}),
    ],
)
def test_names_and_identities(node: dict[str, Any], name: str, record: dict[str, Any]) -> None:
    assert silo_name(context(**node)) == name
    assert dict(identity(context(**node))) == record


def test_partition_of_the_named_dataset() -> None:
    federation = load_federation(CONFIG)
    for k in range(3):
        silo, expected = open_silo(context(partition_id=k), CONFIG, federation.spec), federation.silo(k, CONFIG)
        assert silo.name == f"silo-{k}"
        assert silo.fingerprint == expected.fingerprint


def test_own_folder_goes_before_the_partition(image_folder: Callable[[str], Path]) -> None:
    path = image_folder("clinic")
    silo = open_silo(context(data_path=str(path), silo_name="clinic", partition_id=0), CONFIG, SPEC)
    assert silo.name == "clinic"
    assert (silo.train.label_counts() + silo.holdout.label_counts()).tolist() == [6, 4]
    assert len(silo.holdout) == 1


def test_own_folder_is_brought_into_the_run_s_format(image_folder: Callable[[str], Path]) -> None:
    spec = ImageSpec(3, 16, ("both", "even", "odd"))
    silo = open_silo(context(data_path=str(image_folder("clinic"))), CONFIG, spec)
    assert silo.train.images.shape[1:] == (16, 16, 3)
    assert (silo.train.label_counts() + silo.holdout.label_counts()).tolist() == [0, 6, 4]


def test_bad_images_are_refused_or_skipped_as_configured(image_folder: Callable[[str], Path]) -> None:
    path = image_folder("clinic")
    (path / "odd" / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"torn\.png"):
        open_silo(context(data_path=str(path)), CONFIG, SPEC)
    lenient = RunConfig.from_run_config({"skip-bad-images": True, "holdout-fraction": 0.0})
    assert np.bincount(open_silo(context(data_path=str(path)), lenient, SPEC).train.labels).tolist() == [6, 4]


def test_silo_without_data_is_told_what_to_give() -> None:
    with pytest.raises(UserError, match="neither 'data-path' nor 'partition-id'"):
        open_silo(context(), CONFIG, SPEC)


def test_partition_beyond_the_clients_names_both_keys() -> None:
    with pytest.raises(UserError, match=r"num-clients = 3, but there is a partition 3: set num-supernodes"):
        open_silo(context(partition_id=3), CONFIG, SPEC)


def test_state_lies_in_a_folder_of_the_silo_s_own(tmp_path: Path) -> None:
    config = RunConfig.from_run_config({"state-dir": str(tmp_path)})
    assert state_folder(context(partition_id=3), config) == tmp_path / "silo-3"
    assert state_folder(context(silo_name="St. Mary/2", data_path="x"), config) == tmp_path / "St._Mary_2"
    own = context(silo_name="a", state_path=str(tmp_path / "own"))
    assert state_folder(own, config) == tmp_path / "own" / "a"
    assert state_folder(context(partition_id=0), RunConfig()).is_absolute()
