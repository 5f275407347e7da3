from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dfd_by_hand import census_of, trained_at_once
from flwr.app import ConfigRecord, Message
from hand_made import StubGrid, error_reply, reply

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from fedsynth.messages import SampleRequest
from fedsynth.spec import ImageSpec
from strategies.base import Outcome, Task
from strategies.conversation.exchange import Exchange
from strategies.own_models.pooled import Pooled

SPEC = ImageSpec(1, 2, ("a", "b"))
COUNTS = [[30, 10], [10, 0], [0, 30]]
LABELS = torch.arange(4000) % 2
Respond = Callable[[Message], Message]


def task_of(counts: list[list[int]] = COUNTS, labels: torch.Tensor = LABELS, **changes: Any) -> Task:
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    return Task(RunConfig.from_run_config({"strategy": "pooled", **given}), SPEC, census_of(counts), labels)


def drawn(message: Message) -> Message:
    """Every image is of the brightness that its number says."""
    numbers = SampleRequest.from_message(message).numbers
    images = (numbers % 251).to(torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1).contiguous()
    return reply(message, "arrays", {"images": images}, num_examples=len(images), seconds=2.0)


def gone(message: Message) -> Message:
    return error_reply(message, "silo-1: gone")


def exchange_of(trains: Respond = trained_at_once, draws: Respond = drawn) -> Exchange:
    """Three silos; silo-1 trains and draws as given."""

    def respond(message: Message) -> Message:
        training = message.metadata.message_type == "query.prepare"
        mine, usual = (trains, trained_at_once) if training else (draws, drawn)
        return (mine if message.metadata.dst_node_id == 49 else usual)(message)

    return Exchange(StubGrid([50, 49, 48], respond), 5.0)


def played(task: Task, exchange: Exchange) -> tuple[Outcome, dict[str, Any]]:
    strategy = Pooled()
    arrays, metrics = strategy.run_round(1, strategy.begin(task, exchange), exchange)
    return strategy.finish(task, arrays), dict(metrics)


def asked(task: Task) -> dict[int, SampleRequest]:
    """What every silo is asked."""
    strategy = Pooled()
    arrays = strategy.begin(task, exchange_of())
    requests = strategy.configure_train(1, arrays, ConfigRecord(), StubGrid([]))
    return {50 - message.metadata.dst_node_id: SampleRequest.from_message(message) for message in requests}


def test_shares_are_the_prior_and_every_image_has_one_owner() -> None:
    sent = asked(task_of())
    assert sorted(torch.cat([part.numbers for part in sent.values()]).tolist()) == list(range(len(LABELS)))
    shares = np.zeros((3, 2))
    for silo, part in sent.items():
        assert torch.equal(part.labels, LABELS[part.numbers])
        shares[silo] = np.bincount(part.labels, minlength=2) / 2000
    counts = np.array(COUNTS)
    # Four standard deviations of a share of 2000 draws.
    np.testing.assert_allclose(shares, counts / counts.sum(0), atol=4 * np.sqrt(0.25 / 2000))
    assert shares[1, 1] == shares[2, 0] == 0
    assert torch.equal(sent[0].numbers, asked(task_of())[0].numbers)
    assert not torch.equal(sent[0].numbers, asked(task_of(seed=1))[0].numbers)


def test_images_land_in_their_places_in_any_order_of_answers() -> None:
    task, strategy = task_of(), Pooled()
    messages = list(strategy.configure_train(1, strategy.begin(task, exchange_of()), ConfigRecord(), StubGrid([])))
    arrays, metrics = strategy.aggregate_train(1, map(drawn, messages[::-1]))
    assert arrays is not None
    outcome = strategy.finish(task, arrays)
    np.testing.assert_array_equal(outcome.images[:, 1, 1, 0], np.arange(len(LABELS)) % 251)
    np.testing.assert_array_equal(outcome.labels, LABELS.numpy())
    assert outcome.curves["silo-2"] == [(5, 0.25)]
    assert outcome.notes == ()
    assert metrics == {"silos": 3, "client-seconds": 6.0}


def test_another_holder_draws_for_a_silo_that_has_no_model_or_the_class_is_left_out_by_name() -> None:
    outcome, metrics = played(task_of(min_replies=2), exchange_of(trains=gone))
    np.testing.assert_array_equal(outcome.images[:, 0, 0, 0], np.arange(len(LABELS)) % 251)
    assert outcome.notes == ()
    assert metrics["silos"] == 2
    outcome, _ = played(task_of([[30, 0], [0, 10], [30, 0]], min_replies=2), exchange_of(trains=gone))
    assert set(outcome.labels) == {0}
    assert len(outcome.images) == 2000
    assert outcome.notes == ("no images of class b: none of its holders has a model",)


def test_images_that_a_silo_fails_to_draw_are_missing_by_its_name_also_after_an_interruption() -> None:
    task, exchange, strategy = task_of(min_replies=2), exchange_of(draws=gone), Pooled()
    arrays, metrics = strategy.run_round(1, strategy.begin(task, exchange), exchange)
    outcome = strategy.finish(task, arrays)
    missing = set(asked(task)[1].numbers.tolist())
    expected = [number for number in range(len(LABELS)) if number not in missing]
    assert 0 < len(missing) < 1000
    np.testing.assert_array_equal(outcome.images[:, 0, 0, 0], np.array(expected) % 251)
    np.testing.assert_array_equal(outcome.labels, LABELS[expected].numpy())
    assert metrics["silos"] == 2
    again = Pooled()
    again.resume(task, exchange, strategy.state_dict())
    for finished in (outcome, again.finish(task, arrays)):
        assert finished.notes == ("without the images that silo-1 should have drawn",)


@pytest.mark.parametrize("failing", [{"trains": gone}, {"draws": gone}])
def test_all_silos_are_needed_unless_told_otherwise(failing: dict[str, Respond]) -> None:
    with pytest.raises(RunError, match="2 usable answers, 3 needed: silo-1: gone"):
        played(task_of(), exchange_of(**failing))


def test_images_of_another_shape_end_the_run_by_name() -> None:
    def too_few(message: Message) -> Message:
        return reply(message, "arrays", {"images": torch.zeros(3, 2, 2, 1, dtype=torch.uint8)})

    with pytest.raises(RunError, match=r"3 needed: silo-1: images have shape \(3, 2, 2, 1\), not"):
        played(task_of(), exchange_of(draws=too_few))


def test_class_that_nobody_holds_is_refused_before_any_silo_trains() -> None:
    exchange = exchange_of()
    with pytest.raises(UserError, match=r"no silo holds images of class index \[1\]"):
        Pooled().begin(task_of([[3, 0], [5, 0]]), exchange)
    assert exchange.traffic.messages == 0
