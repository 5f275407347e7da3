from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_made import reply
from hand_made_models import answers, assert_near, begun, gather, mean_of, model, send

from fedsynth.messages import TrainRequest, transport
from strategies.averaging.fedavg import FedAvg
from strategies.base import Outcome, Task

NODES = [30, 10, 20]


def test_every_node_gets_the_weights_and_the_round() -> None:
    requests = send(FedAvg(), 1, model(0), NODES)
    assert [message.metadata.dst_node_id for message in requests] == sorted(NODES)
    for message in requests:
        request = TrainRequest.from_message(message)
        assert request.server_round == 1
        assert all(torch.equal(transport.decode(request.arrays[name]), value) for name, value in model(0).items())


def test_average_agrees_with_a_transcription_in_float64_and_keeps_the_precision_sent() -> None:
    strategy, models, counts = FedAvg(), [model(seed) for seed in (1, 2, 3)], [7, 1, 432]
    models[0] = {name: value.double() if value.is_floating_point() else value for name, value in models[0].items()}
    found, metrics = gather(strategy, 1, answers(send(strategy, 1, model(0), NODES), models, counts))
    assert_near(found, mean_of(models, counts), rtol=1e-7, atol=1e-12)
    assert metrics["num-examples"] == 440
    assert metrics["loss"] == pytest.approx((1 * 7 + 2 * 1 + 3 * 432) / 440)
    assert metrics["client-seconds"] == pytest.approx(1.5)


@pytest.mark.parametrize("rounds", [4, 30])
def test_rounds_share_all_train_steps(rounds: int) -> None:
    strategy = FedAvg(num_rounds=rounds)
    begun(strategy, NODES, **{"train-steps": 30})
    sent = [send(strategy, number, model(0))[0] for number in range(1, rounds + 1)]
    steps = [TrainRequest.from_message(message).steps for message in sent]
    assert sum(steps) == 30
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(("sample_from", "expected"), [("raw", -2.0), ("ema", 0.625)])
def test_chosen_weights_are_sampled(sample_from: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The average over rounds is 3/4 (3/4 · 1 + 1/4 · 3) + 1/4 · (-2)."""
    sampled: list[dict[str, torch.Tensor]] = []

    def draw(task: Task, weights: dict[str, torch.Tensor]) -> Outcome:
        sampled.append(weights)
        return Outcome(np.zeros((2, 8, 8, 1), np.uint8), np.arange(2))

    monkeypatch.setattr("strategies.averaging.base.draw_from_model", draw)
    strategy = FedAvg(sample_from=sample_from, server_ema_decay=0.75)
    task = begun(strategy, [5])
    current = model(0)
    for number, value in enumerate((1.0, 3.0, -2.0), start=1):
        filled = {name: torch.full_like(tensor, value) for name, tensor in current.items()}
        (request,) = send(strategy, number, current)
        answered = reply(request, "arrays", filled, num_examples=1, loss=10.0 - number)
        current, _ = gather(strategy, number, [answered])
    outcome = strategy.finish(task, transport.encode_tensors(current))
    for tensor in sampled[0].values():
        if tensor.is_floating_point():
            np.testing.assert_allclose(tensor, expected, rtol=1e-6)
    assert outcome.curves == {"mean over silos, by round": [(1, 9.0), (2, 8.0), (3, 7.0)]}
    assert (strategy.state_dict()["average"] is None) == (sample_from == "raw")
