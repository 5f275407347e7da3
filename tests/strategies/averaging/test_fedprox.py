from __future__ import annotations

import pytest
from hand_made_models import answers, assert_equal, gather, model, near, send

from strategies.averaging.fedavg import FedAvg
from strategies.averaging.fedprox import FedProx


def test_silos_are_told_mu_beside_all_that_fedavg_tells_and_the_server_s_part_is_fedavg_bit_for_bit() -> None:
    plain = proximal = model(0)
    one, other = FedAvg(), FedProx(proximal_mu=0.125)
    for number in (1, 2):
        requests, pulled = send(one, number, plain, range(5)), send(other, number, proximal, range(5))
        for expected, found in zip(requests, pulled, strict=True):
            told = dict(expected.content.config_records["config"])
            assert dict(found.content.config_records["config"]) == {**told, "proximal-mu": 0.125}
        models = [near(model(0), 10 * number + k) for k in range(5)]
        plain, _ = gather(one, number, answers(requests, models, [7, 1, 30, 400, 2]))
        proximal, _ = gather(other, number, answers(pulled, models, [7, 1, 30, 400, 2]))
        assert_equal(proximal, plain)


def test_mu_of_zero_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    FedProx(proximal_mu=0.01)
    assert caplog.text == ""
    FedProx(proximal_mu=0.0)
    assert "proximal-mu = 0 makes fedprox the same as fedavg" in caplog.text
