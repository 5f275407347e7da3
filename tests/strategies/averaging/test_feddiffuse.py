from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Message
from hand_made_models import (
    BUFFER,
    answer,
    assert_equal,
    assert_near,
    begun,
    counts_of,
    exact,
    gather,
    mean_of,
    model,
    near,
    play,
    round_of,
    send,
)
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.diffusion import PARTS, initial_unet, select_parts
from fedsynth.messages import TrainRequest, transport
from strategies.averaging.fedavg import FedAvg
from strategies.averaging.feddiffuse import FedDiffuse
from strategies.conversation.exchange import Exchange

ENCODER, BOTTLENECK, DECODER = PARTS
SHARED = {
    "full": set(PARTS),
    "usplit": set(PARTS),
    "ulatdec": {BOTTLENECK, DECODER},
    "udec": {DECODER},
}
"""de Goede et al. 2024: the parts that leave a silo."""

FIRST_HALF, SECOND_HALF = {ENCODER, BOTTLENECK}, {DECODER}


def reported(requests: Sequence[Message]) -> list[set[str]]:
    return [set(TrainRequest.from_message(message).report_parts or PARTS) for message in requests]


@pytest.mark.parametrize("method", SHARED)
def test_only_the_exchanged_layers_travel(method: str) -> None:
    strategy = FedDiffuse(feddiffuse_method=method)
    task = begun(strategy, [92, 91, 90])
    weights = transport.decode_tensors(strategy.begin(task, cast(Exchange, None)))
    assert_equal(weights, select_parts(initial_unet(task.config, task.spec).state_dict(), SHARED[method]))
    requests = send(strategy, 1, weights)
    for message in requests:
        assert list(transport.array_record(message, "arrays")) == list(weights)
    assert method == "usplit" or reported(requests) == [SHARED[method]] * 3


def test_full_is_fedavg_bit_for_bit() -> None:
    whole, plain, weights = FedDiffuse(feddiffuse_method="full"), FedAvg(), model(0)
    for number in (1, 2, 3):
        models = [near(weights, 10 * number + k) for k in range(4)]
        weights, expected = (play(one, number, weights, models, [7, 1, 30, 400]) for one in (whole, plain))
        assert_equal(weights, expected)


def test_halves_have_equal_numbers_of_silos_and_are_drawn_anew() -> None:
    strategy, silos = FedDiffuse(), 9
    firsts = np.zeros((40, silos))
    for number in range(1, 41):
        halves = reported(send(strategy, number, model(0), range(silos)))
        assert Counter(map(frozenset, halves)) == {frozenset(FIRST_HALF): 5, frozenset(SECOND_HALF): 4}
        firsts[number - 1] = [half == FIRST_HALF for half in halves]
    # Four standard deviations of a share of 40 draws.
    share = 5 / silos
    np.testing.assert_allclose(firsts.mean(0), share, atol=4 * np.sqrt(share * (1 - share) / 40))


def test_halves_follow_the_seed_and_not_the_node_ids() -> None:
    draws = []
    for seed, node in ((0, 90), (0, 700), (1, 90)):
        strategy = FedDiffuse()
        begun(strategy, range(node, node - 6, -1), seed=seed)
        draws.append([reported(send(strategy, number, model(0))) for number in range(1, 8)])
    assert draws[1] == draws[0]
    assert draws[2] != draws[0]


def test_one_silo_alone_reports_everything() -> None:
    strategy = FedDiffuse(min_train_nodes=1, fraction_train=0.3)
    assert reported(send(strategy, 1, model(0), range(3))) == [set(PARTS)]


@pytest.mark.parametrize("present", [(FIRST_HALF, SECOND_HALF), (FIRST_HALF,), (SECOND_HALF,)])
def test_every_half_is_the_weighted_mean_of_those_who_reported_it_or_stays(present: tuple[set[str], ...]) -> None:
    strategy, start = FedDiffuse(), model(0)
    requests = send(strategy, 1, start, range(5))
    halves, models, counts = reported(requests), round_of(1, 5), counts_of(5)
    expected = exact(start)
    for half in present:
        mine = [k for k, reporting in enumerate(halves) if reporting == half]
        mean = mean_of([models[k] for k in mine], [counts[k] for k in mine])
        expected |= {name: mean[name] for name in select_parts(start, half)}
    answering = [k for k, half in enumerate(halves) if half in present]
    found, metrics = gather(strategy, 1, [answer(requests[k], models[k], k, counts[k]) for k in answering])
    assert metrics["silos"] == len(answering)
    assert_near(found, {name: expected[name] for name in found})
    for half in (FIRST_HALF, SECOND_HALF):
        if half not in present:
            assert_equal(select_parts(found, half), select_parts(start, half))


def test_half_that_was_not_asked_for_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A silo that answers the whole model, or the other half, would count twice as much as it may."""
    strategy, start = FedDiffuse(), model(0)
    requests = send(strategy, 1, start, range(4))
    halves = reported(requests)
    replies = [answer(request, near(start, k), k) for k, request in enumerate(requests)]
    other = SECOND_HALF if halves[2] == FIRST_HALF else FIRST_HALF
    replies[2].content["arrays"] = transport.encode_tensors(select_parts(near(start, 2), other))
    replies[3].content["arrays"] = transport.encode_tensors(near(start, 3))
    _, metrics = gather(strategy, 1, replies)
    assert metrics["silos"] == 2
    assert "silo-2 left out: layers [" in caplog.text
    assert "silo-3 left out: layers [" in caplog.text


@pytest.mark.parametrize("method", ["ulatdec", "udec"])
def test_exchanged_parts_are_averaged_by_images(method: str) -> None:
    strategy, start = FedDiffuse(feddiffuse_method=method), select_parts(model(0), SHARED[method])
    assert BUFFER not in start
    models, counts = [near(model(0), k) for k in range(3)], [5, 1, 30]
    mean = mean_of(models, counts)
    assert_near(play(strategy, 1, start, models, counts), {name: mean[name] for name in start})


def test_silos_draw_the_images_with_their_own_encoders(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="feddiffuse", feddiffuse_method="udec", num_samples=12)
    folder = run_tiny(settings, report=False)
    assert len(images_of(folder)) == 12
    assert not folder.models.exists(), "there is no whole model on the server"
    tokens = [path.name for path in (tmp_path / "state").glob("silo-*/personal/*")]
    assert len(tokens) == 3
    assert len({*tokens, FedDiffuse().state_dict()["run-token"]}) == 2, "runs keep apart"


@pytest.mark.parametrize("sample_from", ["raw", "ema"])
def test_where_all_parts_are_exchanged_the_server_draws_with_its_model(tmp_path: Path, sample_from: str) -> None:
    given = {"num_samples": 12, "sample_from": sample_from}
    full = run_tiny(
        tiny_settings(tmp_path / "full", strategy="feddiffuse", feddiffuse_method="full", **given), report=False
    )
    assert (full.models / "global").is_dir()
    fedavg = run_tiny(tiny_settings(tmp_path / "fedavg", strategy="fedavg", **given), report=False)
    assert images_of(full) == images_of(fedavg)
