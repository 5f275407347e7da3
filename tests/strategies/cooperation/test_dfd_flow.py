"""Posterior weights along paths without noise: what is asked, what divergences do, and which are not believed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from dfd_by_hand import LABELS, SPEC, answer, begin, by_silo, drive, requests, run, task_of
from flwr.app import Message
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.config import Diffusion
from fedsynth.diffusion import build_unet, draw_initial_noise, make_scheduler, noise_predictor
from fedsynth.diffusion.divergence import draw_probe
from fedsynth.messages import wire
from fedsynth.mixture import FlowPosterior, compose
from fedsynth.seeding import derive_seed
from strategies.cooperation.dfd import DfD

EVEN = [[2, 2, 2]] * 3


def flow(rounds: int = 4) -> DfD:
    return DfD(sampler="ddim", weights="posterior", dfd_rounds=rounds)


def test_rounds_of_networks_agree_with_a_plain_loop_of_exact_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [build_unet("digits", SPEC, torch.Generator().manual_seed(k), (8, 8), 1) for k in range(3)]
    predictors = [noise_predictor(network) for network in networks]

    def model(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return predictors[silo](x, t, labels)

    def along_probe(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor, *_: object) -> torch.Tensor:
        probe = draw_probe(x, labels, derive_seed(0, "divergence", t))
        network = partial(networks[silo].forward, timestep=t, class_labels=labels)
        _, change = torch.func.jvp(lambda x: network(x).sample, (x,), (probe,))
        return (change * probe).flatten(1).sum(1).detach()

    monkeypatch.setattr("dfd_by_hand.divergence", along_probe)
    got = run(flow(), task_of(EVEN), model)

    scheduler, posterior = make_scheduler(Diffusion(), 4, "ddim"), FlowPosterior(torch.zeros(3, len(LABELS)))
    x = draw_initial_noise(0, len(LABELS), SPEC.shape)
    for t in scheduler.timesteps.tolist():
        eps = torch.stack([model(k, x, t, LABELS) for k in range(3)])
        slopes = torch.stack([along_probe(k, x, t, LABELS) for k in range(3)])
        moved = scheduler.step(compose(eps, posterior.weights), t, x).prev_sample
        posterior.update(x, moved, eps, slopes, scheduler, t)
        x = moved
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-4)
    assert 0.5 < float(posterior.weights.max()) < 1.0 - 1e-9


def test_all_silos_are_given_one_probe_of_their_level() -> None:
    strategy = flow()
    first = requests(strategy, 1, begin(strategy, task_of()))
    seeds = {message.content.config_records[wire.CONFIG][wire.PROBE_SEED] for message in first}
    assert seeds == {derive_seed(0, "divergence", 999)}


@pytest.mark.parametrize(("sampler", "weights"), [("ddim", "constant"), ("ddpm", "posterior"), ("ddim", "energy")])
def test_divergences_are_asked_for_only_where_they_are_needed(sampler: str, weights: str) -> None:
    strategy = DfD(sampler=sampler, weights=weights, dfd_rounds=4)
    for message in requests(strategy, 1, begin(strategy, task_of())):
        assert wire.PROBE_SEED not in message.content.config_records[wire.CONFIG]


def changed(message: Message, silo: int, values: torch.Tensor) -> Message:
    made = answer(message, silo)
    made.content[wire.DIVERGENCE] = wire.encode_tensors({"d": values})
    return made


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.full((7,), torch.nan), "divergence is not finite"),
        (torch.zeros(6), "divergence has shape (6,), not (7,)"),
    ],
)
def test_unusable_divergence_is_left_out_by_name(
    values: torch.Tensor, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    moved = []
    for broken in (True, False):
        strategy = flow()
        asked = by_silo(requests(strategy, 1, begin(strategy, task_of(EVEN, **{"min-replies": 2}))))
        replies = [answer(asked[k], k) for k in (0, 2)]
        arrays, _ = strategy.aggregate_train(1, [*replies, changed(asked[1], 1, values)] if broken else replies)
        assert arrays is not None
        moved.append(wire.decode(arrays[wire.SAMPLES]))
    assert torch.equal(*moved)
    assert f"silo-1 left out: {said}" in caplog.text


def test_a_claim_beyond_the_bound_counts_as_the_bound() -> None:
    """16 numbers near pure noise: at most 16 / √(1-ᾱ)."""
    bound = 16 / (1 - float(make_scheduler(Diffusion()).alphas_cumprod[999])) ** 0.5
    logits = []
    for claim in (1e30, bound, 0.9 * bound):
        strategy = flow()
        asked = by_silo(requests(strategy, 1, begin(strategy, task_of(EVEN))))
        replies = [answer(asked[0], 0), changed(asked[1], 1, torch.full((7,), claim)), answer(asked[2], 2)]
        strategy.aggregate_train(1, replies)
        logits.append(torch.cat([cohort["logits"] for cohort in strategy.state_dict()["cohorts"]], 1))
    assert torch.equal(logits[0], logits[1])
    assert (logits[1] - logits[2]).abs().max() > 1e-3


def test_answer_without_divergence_is_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    strategy = flow()
    asked = by_silo(requests(strategy, 1, begin(strategy, task_of(EVEN))))
    replies = [answer(message, silo) for silo, message in asked.items()]
    del replies[1].content[wire.DIVERGENCE]
    strategy.aggregate_train(1, replies)
    assert "silo-1 left out: there is no array record 'divergence'" in caplog.text


def test_a_silo_that_always_claims_the_largest_divergence_takes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that is not found out: three equal silos, one of which claims what a single image would have."""

    def most(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor, *_: object) -> torch.Tensor:
        alpha = float(make_scheduler(Diffusion()).alphas_cumprod[t])
        return torch.full((len(x),), 16 / (1 - alpha) ** 0.5 * (1.0 if silo == 1 else 0.5))

    def same(silo: int, x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    monkeypatch.setattr("dfd_by_hand.divergence", most)
    strategy = flow()
    drive(strategy, begin(strategy, task_of(EVEN)), model=same)
    for cohort in strategy.state_dict()["cohorts"]:
        assert (cohort["logits"].exp()[1] > 0.999).all()


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_a_federation_of_real_silos_answers_with_divergences(sampler: str, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def watch(replies: list[Message]) -> list[Message]:
        found = [reply for reply in replies if wire.DIVERGENCE in wire.array_names(reply)]
        seen.extend(wire.decode(wire.array_record(reply, wire.DIVERGENCE)[wire.DIVERGENCE]) for reply in found)
        return replies

    settings = tiny_settings(tmp_path, strategy="dfd", sampler=sampler, weights="posterior")
    folder = run_tiny(settings, watch, report=False)
    assert len(images_of(folder)) == 30
    rounds = folder.read_metrics()
    # Networks that were hardly trained tell silos apart, but not at the first level, where the prior alone speaks.
    assert "left out" not in folder.log.read_text()
    assert len(seen) == 3 * len(rounds)
    assert rounds[0]["effective-experts"] > rounds[-1]["effective-experts"] > 1
