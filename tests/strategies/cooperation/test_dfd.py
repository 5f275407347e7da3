from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from dfd_by_hand import (
    COUNTS,
    LABELS,
    ROUNDS,
    SPEC,
    answer,
    begin,
    by_silo,
    drive,
    fresh,
    moved,
    predict,
    requests,
    run,
    samples_of,
    task_of,
    trained_at_once,
)
from diffusers import DDPMScheduler
from flwr.app import MetricRecord
from hand_made import StubGrid, error_reply, reply

from fedsynth.errors import RunError, UserError
from fedsynth.messages import EpsilonRequest, transport
from fedsynth.mixture import PathPosterior, ULAScheduler, log_prior, temper
from fedsynth.seeding import make_generator
from strategies.conversation.exchange import Exchange
from strategies.cooperation.dfd import DfD


def scheduler_of_levels() -> DDPMScheduler:
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(ROUNDS)
    return scheduler


def looped_weights(kind: str, prior: np.ndarray, eps: torch.Tensor, lam: float) -> np.ndarray:
    """Weights (K, N) by double loops in float64."""
    weights = np.zeros(prior.shape)
    for n in range(prior.shape[1]):
        energies = [0.5 * float(eps[k, n].double().square().sum()) for k in range(prior.shape[0])]
        least = min(energies)
        for k in range(prior.shape[0]):
            weights[k, n] = prior[k, n] * (math.exp(-lam * (energies[k] - least)) if kind == "energy" else 1.0)
        weights[:, n] /= weights[:, n].sum()
    return weights


def step_by_class(
    scheduler: Any, composed: torch.Tensor, level: int, x: torch.Tensor, labels: torch.Tensor, seed: int
) -> torch.Tensor:
    """Move every class with noise of its own."""
    moved = torch.empty_like(x)
    for number, label in enumerate(torch.unique(labels).tolist()):
        rows, t = labels == label, int(scheduler.timesteps[level])
        generator = make_generator(seed, "cooperative-noise", level, number)
        moved[rows] = scheduler.step(composed[rows], t, x[rows], generator=generator).prev_sample
    return moved


@pytest.mark.parametrize(
    ("kind", "prior_kind", "more"),
    [
        ("posterior", "class", {}),
        ("posterior", "class", {"temperature": 2.0}),
        ("energy", "size", {"energy_scale": 0.3}),
        ("constant", "uniform", {}),
        ("constant", "class", {}),
    ],
)
def test_rounds_agree_with_a_plain_loop(kind: str, prior_kind: str, more: dict[str, float]) -> None:
    got = run(DfD(sampler="ddpm", dfd_rounds=ROUNDS, weights=kind, prior=prior_kind, **more), task_of(seed=3))

    scheduler = scheduler_of_levels()
    x = torch.randn((len(LABELS), *SPEC.shape), generator=make_generator(3, "initial-noise"))
    log_weights = log_prior(prior_kind, torch.tensor(COUNTS), LABELS)
    prior, posterior = log_weights.exp().numpy(), PathPosterior(log_weights)
    for level, t in enumerate(scheduler.timesteps.tolist()):
        eps = torch.stack([predict(k, x, t, LABELS) for k in range(3)])
        weights = looped_weights(kind, prior, eps, 0.3)
        if kind == "posterior":
            tempered = temper(posterior.logits, log_weights, more.get("temperature", 1.0))
            weights = torch.softmax(tempered, 0).numpy()
        composed = np.zeros(x.shape)
        for k in range(3):
            for n in range(len(LABELS)):
                composed[n] += weights[k, n] * eps[k, n].double().numpy()
        moved = step_by_class(scheduler, torch.from_numpy(composed).float(), level, x, LABELS, seed=3)
        posterior.update(x, moved, eps, scheduler, t)
        x = moved
    np.testing.assert_allclose(got.numpy(), x.numpy(), rtol=0, atol=2e-5)


def test_langevin_rounds_agree_with_a_plain_loop() -> None:
    strategy = DfD(
        dfd_rounds=ROUNDS, sampler="ula", weights="constant", prior="uniform", step_scale=0.1, score_scale=2.0
    )
    got = run(strategy, task_of())
    scheduler = ULAScheduler(step_scale=0.1, score_scale=2.0)
    scheduler.set_timesteps(ROUNDS)
    x = torch.randn((len(LABELS), *SPEC.shape), generator=make_generator(0, "initial-noise"))
    for level, t in enumerate(scheduler.timesteps.tolist()):
        eps = sum(predict(k, x, t, LABELS) for k in range(3)) / 3
        variance = 1 - float(scheduler.alphas_cumprod[t])
        noise = torch.empty_like(x)
        for label in range(3):
            generator = make_generator(0, "cooperative-noise", level, label)
            noise[label == LABELS] = torch.randn((int((label == LABELS).sum()), 1, 4, 4), generator=generator)
        step = 0.1 * variance
        x = x - step * 2.0 * eps / math.sqrt(variance) + math.sqrt(2 * step) * noise
    np.testing.assert_allclose(got.numpy(), x.numpy(), rtol=0, atol=2e-5)


def ancestral(**options: Any) -> DfD:
    return DfD(sampler="ddpm", dfd_rounds=ROUNDS, **options)


def test_silos_are_asked_only_about_classes_they_hold() -> None:
    strategy = ancestral()
    arrays = begin(strategy, task_of([*COUNTS, [0, 0, 0]]))
    asked = by_silo(requests(strategy, 1, arrays))
    assert sorted(asked) == [0, 1, 2]
    for silo, message in asked.items():
        held = torch.tensor([COUNTS[silo][label] > 0 for label in LABELS.tolist()])
        sent = EpsilonRequest.from_message(message)
        assert torch.equal(sent.labels, LABELS[held])
        assert torch.equal(sent.samples, samples_of(arrays)[held])
        assert (message.metadata.message_type, sent.timestep, sent.server_round) == ("query.epsilon", 999, 1)
    moved(strategy, 1, [answer(message, silo) for silo, message in asked.items()])


def test_class_that_nobody_holds_is_refused_before_any_silo_trains() -> None:
    grid = StubGrid([], trained_at_once)
    with pytest.raises(UserError, match=r"no silo holds images of class index \[2\]"):
        DfD().begin(task_of([[5, 1, 0], [2, 1, 0]]), Exchange(grid, 5.0))
    assert grid.requests == []


def test_silos_asked_about_everything_share_one_record_in_the_precision_of_the_wire() -> None:
    strategy = ancestral(prior="size")
    asked = requests(strategy, 1, begin(strategy, task_of(wire_dtype="float16")))
    records = [transport.array_record(message, "arrays") for message in asked]
    assert [(record["samples"].dtype, record["labels"].dtype) for record in records] == [("float16", "int64")] * 3
    assert len(set(map(id, records))) == 1


def test_unusable_answer_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    task, results = task_of([[1, 2, 3], [4, 2, 2], [3, 3, 3]], min_replies=2), []
    for broken in (True, False):
        strategy = ancestral()
        asked = by_silo(requests(strategy, 1, begin(strategy, task)))
        replies = [answer(asked[k], k) for k in (0, 2)]
        if broken:
            replies.insert(1, reply(asked[1], "epsilon", {"e": torch.full((7, 1, 4, 4), torch.inf)}, partition=1))
        results.append(samples_of(moved(strategy, 1, replies)[0]))
    assert torch.equal(*results)
    assert "silo-1 left out: epsilon is not finite" in caplog.text


@pytest.mark.parametrize(("min_replies", "said"), [("auto", "0 usable answers, 1"), (3, "2 usable answers, 3")])
def test_too_few_answers_end_the_run_with_the_reason(min_replies: Any, said: str) -> None:
    strategy = ancestral()
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of(min_replies=min_replies))))
    replies = [answer(asked[k], k) for k in ((0, 1) if min_replies == 3 else ())]
    with pytest.raises(RunError, match=f"{said} needed: silo-2: no memory"):
        strategy.aggregate_train(1, [*replies, error_reply(asked[2], "silo-2: no memory")])


def test_silo_that_missed_a_level_comes_back_with_its_weight() -> None:
    strategy, rows = ancestral(), list[MetricRecord]()
    drive(
        strategy,
        begin(strategy, task_of([[1, 1, 1]] * 2, min_replies=1)),
        stop=3,
        absent=lambda number, silo: (number, silo) == (2, 1),
        answers=lambda message, silo: answer(message, 0),
        rows=rows,
    )
    assert [row["effective-experts"] for row in rows] == pytest.approx([2.0, 1.0, 2.0])


def test_finish_turns_samples_into_images_and_keeps_the_curves() -> None:
    strategy, task = ancestral(), task_of()
    run(strategy, task)
    samples = torch.linspace(-2, 2, 7 * 16).reshape(7, 1, 4, 4)
    outcome = strategy.finish(task, fresh(samples, LABELS))
    assert outcome.notes == ()
    expected = np.clip(np.round((np.clip(samples.numpy(), -1, 1) + 1) * 127.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(outcome.images, expected.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(outcome.labels, LABELS.numpy())
    assert outcome.curves == {f"silo-{k}": [(5, 0.25)] for k in range(3)}
    assert [member.train_seconds for member in task.census] == [1.5] * 3
