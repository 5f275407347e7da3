from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Message
from spoiled_answers import Tamper
from tiny_silos import AUX_SAMPLES, TinySilos, diffusers_ddpm

from fedsynth.data.apportion import apportion
from fedsynth.errors import RunError
from fedsynth.messages import UploadRequest, sender_of, transport
from fedsynth.seeding import make_generator
from strategies.base import Task


def test_set_has_the_silos_shares_of_images_by_their_own_models_in_whatever_order_they_come(silos: TinySilos) -> None:
    task, exchange, strategy = silos.meet(lambda replies: replies[::-1])
    strategy.begin(task, exchange)
    assert exchange.kinds["query.upload"] == 3
    auxiliary, counts, first = strategy.state_dict()["auxiliary"], task.census.label_counts, 0
    assert (auxiliary["images"].shape, auxiliary["images"].dtype) == ((AUX_SAMPLES, 8, 8, 1), torch.uint8)
    sizes = counts.sum(1).double()
    assert sizes.max() > 1.5 * sizes.min(), "uneven silos"
    shares = torch.from_numpy(apportion(AUX_SAMPLES, counts.numpy()))
    np.testing.assert_allclose(shares.sum(1), AUX_SAMPLES * sizes / sizes.sum(), atol=2)
    assert (shares[counts == 0] == 0).all()
    for k, share in enumerate(shares):
        labels = torch.tensor([y for y, count in enumerate(share.tolist()) for _ in range(count)])
        network, scheduler = silos.own_model(k), diffusers_ddpm(task.config.recipe, 4)
        generator = make_generator(0, "auxiliary-set", f"silo-{k}")
        x = torch.randn(len(labels), 1, 8, 8, generator=generator)
        for t in scheduler.timesteps:
            with torch.no_grad():
                x = scheduler.step(network(x, t, class_labels=labels).sample, t, x, generator=generator).prev_sample
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
        mine = slice(first, first + len(labels))
        np.testing.assert_allclose(auxiliary["images"][mine].float().numpy(), pixels.numpy(), atol=1)
        assert torch.equal(auxiliary["labels"][mine], labels)
        first = mine.stop
    assert first == AUX_SAMPLES


def _share(task: Task, k: int) -> int:
    return int(apportion(AUX_SAMPLES, task.census.label_counts.numpy())[k].sum())


def not_finite(*silos: int) -> Tamper:
    """Spoil the uploads of some silos."""

    def tamper(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if sender_of(reply).partition in silos and reply.metadata.message_type == UploadRequest.kind:
                weights = transport.decode_tensors(transport.array_record(reply, "arrays"))
                weights["conv_out.bias"].fill_(math.nan)
                reply.content["arrays"] = transport.encode_tensors(weights)
        return replies

    return tamper


def test_upload_that_cannot_be_used_is_left_out_with_its_share(
    silos: TinySilos, caplog: pytest.LogCaptureFixture
) -> None:
    whole = silos.begin()[1].state_dict()["auxiliary"]
    task, exchange, strategy = silos.meet(not_finite(1))
    strategy.begin(task, exchange)
    rest = strategy.state_dict()["auxiliary"]
    start = _share(task, 0)
    kept = [k for k in range(AUX_SAMPLES) if not start <= k < start + _share(task, 1)]
    assert "silo-1 left out: layer conv_out.bias is not finite" in caplog.text
    assert torch.equal(rest["images"], whole["images"][kept])
    assert torch.equal(rest["labels"], whole["labels"][kept])


def with_weights(size: float) -> Tamper:
    """All weights of silo-1's upload have one size, so that it draws what is no number."""

    def tamper(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if sender_of(reply).partition == 1 and reply.metadata.message_type == UploadRequest.kind:
                weights = transport.decode_tensors(transport.array_record(reply, "arrays"))
                filled = {name: torch.full_like(value, size) for name, value in weights.items()}
                reply.content["arrays"] = transport.encode_tensors(filled)
        return replies

    return tamper


def test_upload_that_draws_no_images_is_left_out(silos: TinySilos, caplog: pytest.LogCaptureFixture) -> None:
    task, exchange, strategy = silos.meet(with_weights(9e5))
    strategy.begin(task, exchange)
    assert "images drawn from the model are not finite: its training has diverged" in caplog.text
    assert len(strategy.state_dict()["auxiliary"]["labels"]) == AUX_SAMPLES - _share(task, 1)


def test_half_of_the_uploads_are_enough_unless_told_otherwise(silos: TinySilos) -> None:
    task, exchange, strategy = silos.meet(not_finite(0, 1))
    with pytest.raises(RunError, match=r"1 usable answers, 2 needed: silo-\d: layer conv_out\.bias is not finite"):
        strategy.begin(task, exchange)
    task, exchange, strategy = silos.meet(not_finite(0, 1), min_replies=1)
    strategy.begin(task, exchange)
    assert len(strategy.state_dict()["auxiliary"]["labels"]) == _share(task, 2)


def test_silo_without_a_share_is_not_asked(silos: TinySilos) -> None:
    task, grid, strategy = silos.meet(aux_samples=1)
    strategy.begin(task, grid)
    assert grid.kinds["query.upload"] == 1
    (label,) = strategy.state_dict()["auxiliary"]["labels"].tolist()
    assert task.census.label_counts[:, label].max() == task.census.label_counts.max()
