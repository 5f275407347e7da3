from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_made_models import answers, assert_equal, gather, model, near, play, send
from tiny_runs import run_tiny, tiny_settings

from fedsynth.config import RunConfig
from fedsynth.diffusion import ClassConditionalDDPMPipeline, initial_unet
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedprox import FedProx


def test_every_silo_is_told_mu_beside_all_that_fedavg_tells() -> None:
    plain, proximal = (
        [wire.config(message) for message in send(strategy, 3, model(0), range(4), **{"train-steps": 40, "key": "x"})]
        for strategy in (FedAvg(), FedProx(proximal_mu=0.125))
    )
    assert [dict(config) for config in proximal] == [{**config, "proximal-mu": 0.125} for config in plain]
    assert {config["steps"] for config in plain} == {2}


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


def test_mu_does_not_stay_for_the_next_round() -> None:
    """The server's own settings are not changed by what it adds to them."""
    strategy = FedProx(proximal_mu=0.5)
    requests = send(strategy, 1, model(0), range(2), key=1)
    gather(strategy, 1, answers(requests, [model(1), model(2)], [1, 1]))
    again = send(strategy, 2, model(0), range(2), key=2)
    assert [dict(wire.config(message)) for message in again] == [{"key": 2, "server-round": 2, "proximal-mu": 0.5}] * 2


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
