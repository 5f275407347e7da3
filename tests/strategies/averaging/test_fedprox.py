from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_made_models import assert_equal, model, near, play, send
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import RunConfig
from fedsynth.diffusion import ClassConditionalDDPMPipeline, initial_unet
from fedsynth.spec import ImageSpec
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedprox import FedProx


def test_every_silo_is_told_mu_in_every_round_beside_all_that_fedavg_tells() -> None:
    plain, proximal = FedAvg(), FedProx(proximal_mu=0.125)
    for number in (1, 2):
        pairs = zip(send(plain, number, model(0), range(4)), send(proximal, number, model(0), range(4)), strict=True)
        for one, other in pairs:
            expected, found = dict(one.content.config_records["config"]), dict(other.content.config_records["config"])
            assert found == {**expected, "proximal-mu": 0.125}


def test_server_s_part_is_fedavg_bit_for_bit() -> None:
    plain = proximal = model(0)
    for number in (1, 2, 3):
        models = [near(model(0), 10 * number + k) for k in range(5)]
        plain = play(FedAvg(), number, plain, models, [7, 1, 30, 400, 2])
        proximal = play(FedProx(proximal_mu=1.0), number, proximal, models, [7, 1, 30, 400, 2])
        assert_equal(proximal, plain)


def test_mu_of_zero_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    FedProx(proximal_mu=0.01)
    assert caplog.text == ""
    FedProx(proximal_mu=0.0)
    assert "proximal-mu = 0 makes fedprox the same as fedavg" in caplog.text


def moved(folder: Path, strategy: str, mu: float | str) -> torch.Tensor:
    """What one round of a tiny run adds to the initial weights, as one vector."""
    settings = tiny_settings(
        folder,
        **{"strategy": strategy, "proximal_mu": mu, "run_name": f"{strategy}-{mu}"},
        **{"num_clients": 2, "num_rounds": 1, "train_steps": 12, "num_samples": 2, "learning_rate": 1e-2},
    )
    model_folder = run_tiny(settings, report=False).models / "global"
    final = ClassConditionalDDPMPipeline.from_pretrained(model_folder).unet.state_dict()
    start = initial_unet(RunConfig.from_run_config(settings), ImageSpec(1, 8, tuple("0123456789"))).state_dict()
    return torch.cat([(final[name] - value).flatten() for name, value in start.items()])


def test_a_whole_run_is_held_back_by_mu_and_is_fedavg_without(tmp_path: Path) -> None:
    plain = moved(tmp_path, "fedavg", "auto")
    assert torch.equal(moved(tmp_path, "fedprox", 0.0), plain)
    lengths = [float(moved(tmp_path, "fedprox", mu).norm()) for mu in (0.1, 10.0)]
    assert 0 < lengths[1] < 0.5 * lengths[0]
    assert lengths[0] < float(plain.norm())
