from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from one_silo import SPEC

import clients.models.federated_model
from clients.models.federated_model import FederatedModel, PersonalTensors
from fedsynth.diffusion import build_unet, select_parts
from fedsynth.errors import UserError


def network(seed: int = 0) -> UNet2DModel:
    return build_unet("digits", SPEC, torch.Generator().manual_seed(seed), (8, 8), 1)


def value(number: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), float(number))}


def files(state: Path) -> list[str]:
    return sorted(path.name for path in state.rglob("*") if path.is_file())


def test_newest_round_before_or_after_another(tmp_path: Path) -> None:
    tensors = PersonalTensors(tmp_path, "run-1")
    assert tensors.before(1) == tensors.before(7) == {}
    tensors.keep(3, value(3))
    tensors.keep(11, value(11))
    assert (tmp_path / "personal" / "run-1" / "round-00011.safetensors").is_file()
    assert tensors.before(4)["w"].tolist() == tensors.before(11)["w"].tolist() == [3, 3]
    assert tensors.before(12)["w"].tolist() == tensors.before(100)["w"].tolist() == [11, 11]
    assert tensors.after(3)["w"].tolist() == tensors.after(10)["w"].tolist() == [3, 3]
    assert tensors.after(11)["w"].tolist() == tensors.after(100)["w"].tolist() == [11, 11]


def test_three_newest_files_stay(tmp_path: Path) -> None:
    tensors, seen = PersonalTensors(tmp_path, "run"), []
    for server_round in (1, 2, 5, 99_999, 100_000):
        tensors.keep(server_round, value(server_round))
        seen.append([int(name[6:-12]) for name in files(tmp_path)])
    assert [sorted(rounds) for rounds in seen] == [[1], [1, 2], [1, 2, 5], [2, 5, 99_999], [5, 99_999, 100_000]]
    assert tensors.before(100_001)["w"].tolist() == [100_000, 100_000]


def test_server_that_goes_back_makes_later_rounds_anew(tmp_path: Path) -> None:
    tensors = PersonalTensors(tmp_path, "run")
    for server_round in (2, 4):
        tensors.keep(server_round, value(server_round))
    assert tensors.before(3)["w"].tolist() == [2, 2]
    tensors.keep(3, value(3))
    assert files(tmp_path) == ["round-00002.safetensors", "round-00003.safetensors"]


def test_round_whose_start_is_gone_is_refused(tmp_path: Path) -> None:
    tensors = PersonalTensors(tmp_path, "run")
    for server_round in (1, 2, 3, 4):
        tensors.keep(server_round, value(server_round))
    assert tensors.before(3)["w"].tolist() == [2, 2]
    with pytest.raises(UserError, match=r"server-round = 2: '.*' only holds rounds \[2, 3, 4\]: resume .* > 2"):
        tensors.before(2)
    assert tensors.before(1) == {}, "the first round starts from the initial weights, whatever came later"
    assert PersonalTensors(tmp_path, "other-run").before(3) == {}


def test_after_a_round_without_the_silo(tmp_path: Path) -> None:
    tensors = PersonalTensors(tmp_path, "run")
    for _ in range(2):
        assert tensors.before(4) == tensors.before(3) == {}, "its first round can be asked for again"
        with pytest.raises(UserError, match=r"server-round = 3: '.*' holds nothing of that round or an earlier one"):
            tensors.after(3)
        tensors.keep(4, value(4))


@pytest.mark.parametrize("token", ["", "..", "a/b", "run\n", "ä"])
def test_token_that_is_no_plain_name(token: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run-token = '"):
        PersonalTensors(tmp_path, token)
    with pytest.raises(UserError, match="run-token = '"):
        FederatedModel(network(), network().state_dict(), tmp_path, token)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    tensors = PersonalTensors(tmp_path, "run")
    tensors.keep(1, value(1))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"round-00001.safetensors' are damaged"):
        tensors.before(2)


def test_full_disk_leaves_the_rounds_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    tensors = PersonalTensors(tmp_path, "run")
    for server_round in (1, 2):
        tensors.keep(server_round, value(server_round))
    with monkeypatch.context() as patched:
        patched.setattr(clients.models.federated_model, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            tensors.keep(3, value(3))
    assert files(tmp_path) == ["round-00001.safetensors", "round-00002.safetensors"]
    assert tensors.before(3)["w"].tolist() == [2, 2]


def test_received_goes_over_kept_goes_over_initial(tmp_path: Path) -> None:
    initial, kept, received = (network(seed).state_dict() for seed in (0, 1, 2))
    some = select_parts(received, ["decoder"])
    PersonalTensors(tmp_path, "run").keep(1, select_parts(kept, ["bottleneck", "decoder"]))
    found = FederatedModel(network(), some, tmp_path, "run").before(2).state_dict()
    for name, tensor in found.items():
        part = name.split(".")[0]
        source = received if name in some else kept if part == "mid_block" else initial
        assert torch.equal(tensor, source[name]), name


def test_silo_that_has_trained_does_not_start_afresh_without_its_folder(tmp_path: Path) -> None:
    decoder = select_parts(network().state_dict(), ["decoder"])
    FederatedModel(network(), decoder, tmp_path, "run").keep(1)
    assert FederatedModel(network(), decoder, tmp_path, "run").before(2, has_trained=True) is not None
    with pytest.raises(UserError, match="server-round = 2: this silo's own part of the model is not in its state"):
        FederatedModel(network(), decoder, tmp_path / "elsewhere", "run").before(2, has_trained=True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"conv_out.bias": torch.zeros(2)}, r"layer 'conv_out.bias' has shape \(1,\), not \(2,\)"),
        ({"conv_out.gain": torch.zeros(1)}, "there is no layer 'conv_out.gain'"),
    ],
)
def test_weights_that_do_not_fit(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    received = {**select_parts(network().state_dict(), ["decoder"]), **changes}
    with pytest.raises(UserError, match=f"weights do not fit the silo's network \\({why}\\)"):
        FederatedModel(network(), received, tmp_path, "run")


def test_kept_weights_of_another_network(tmp_path: Path) -> None:
    wider = build_unet("digits", SPEC, torch.Generator(), (8, 16), 1).state_dict()
    PersonalTensors(tmp_path, "run").keep(1, select_parts(wider, ["encoder", "bottleneck"]))
    model = FederatedModel(network(), select_parts(network().state_dict(), ["decoder"]), tmp_path, "run")
    with pytest.raises(UserError, match="weights do not fit the silo's network"):
        model.before(2)
