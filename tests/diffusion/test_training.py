from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from exact_networks import KINDS, alphas_of

from fedsynth.config import RECIPES, Recipe, Training
from fedsynth.diffusion import (
    EncodedImages,
    HeldOutLoss,
    TrainingState,
    build_unet,
    loss_curve,
    make_codec,
    train,
    training,
)
from fedsynth.spec import ImageSpec

CONFIG = Training(batch_size=8)
RECIPE = RECIPES["paper"].model_copy(update={"learning_rate": 2e-3, "ema_decay": 0.9})
Build = Callable[..., UNet2DModel]


def data(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes, one direction a class."""
    labels = torch.arange(n) % 2
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    return torch.stack([stripes if label else stripes.T for label in labels])[:, None].contiguous(), labels


def new_state(build: Build, recipe: Recipe = RECIPE, total_steps: int = 100) -> TrainingState:
    return TrainingState(build(), recipe, torch.Generator().manual_seed(1), total_steps)


def assert_same(one: TrainingState, other: TrainingState) -> None:
    for name, values in one.unet.state_dict().items():
        assert torch.equal(values, other.unet.state_dict()[name]), name
    for values, others in zip(one.ema.shadow_params, other.ema.shadow_params, strict=True):
        assert torch.equal(values, others)
    assert one.losses == other.losses
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_global_random_state_is_untouched(tiny_unet: Build) -> None:
    before = torch.get_rng_state()
    train(new_state(tiny_unet), *data(), CONFIG, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_deadline_stops_after_at_least_one_step(tiny_unet: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    state, ticks = new_state(tiny_unet), itertools.count(1)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert len(train(state, *data(), CONFIG, 100, deadline=0.0)) == 1
    ticks = itertools.count(1)
    assert len(train(state, *data(), CONFIG, 100, deadline=3.0)) == 3
    assert len(train(state, *data(), CONFIG, 6, deadline=1e9)) == 2
    assert train(state, *data(), CONFIG, 6, deadline=1e9) == []


def test_average_of_weights_warms_up(tiny_unet: Build) -> None:
    decay = 0.6
    state = new_state(tiny_unet, RECIPE.model_copy(update={"ema_decay": decay}))
    average: list[np.ndarray] = []

    def follow(step: int, loss: float) -> None:
        nonlocal average
        keep = min(decay, 1 - step**-0.75)
        values = [p.detach().double().numpy() for p in state.unet.parameters()]
        old = average or values
        average = [keep * a + (1 - keep) * p for a, p in zip(old, values, strict=True)]

    train(state, *data(), CONFIG, 7, on_step=follow)
    raw = [p.detach().clone() for p in state.unet.parameters()]
    for mean, found in zip(average, state.averaged_unet().parameters(), strict=True):
        np.testing.assert_allclose(found.detach(), mean, rtol=1e-5, atol=1e-6)
    moved = max(float((p - m.detach()).abs().max()) for p, m in zip(raw, state.unet.parameters(), strict=True))
    assert moved > 1e-4


def test_gradients_are_clipped(tiny_unet: Build) -> None:
    for limit in (1e-3, 1e3):
        config = CONFIG.model_copy(update={"max_grad_norm": limit})
        state = new_state(tiny_unet)
        train(state, *data(), config, 1)
        norm = math.sqrt(
            sum(float(p.grad.double().square().sum()) for p in state.unet.parameters() if p.grad is not None)
        )
        assert norm == pytest.approx(1e-3, rel=1e-3) if limit < 1 else 1e-2 < norm < 1e3


def test_bf16_without_cuda_changes_nothing(tiny_unet: Build) -> None:
    exact, narrow = new_state(tiny_unet), new_state(tiny_unet)
    train(exact, *data(), CONFIG, 2)
    train(narrow, *data(), CONFIG.model_copy(update={"mixed_precision": "bf16"}), 2)
    assert_same(exact, narrow)


@pytest.mark.parametrize(("n", "points"), [(0, 0), (1, 1), (50, 50), (51, 26), (120, 40), (900, 50)])
def test_loss_curve_is_thinned(n: int, points: int) -> None:
    losses = [float(value) for value in np.random.default_rng(0).normal(size=n)]
    curve = loss_curve(losses)
    assert len(curve["steps"]) == len(curve["losses"]) == points
    ends = [0, *map(int, curve["steps"])]
    assert ends[-1] == n
    means = [np.mean(losses[first:last]) for first, last in itertools.pairwise(ends)]
    np.testing.assert_allclose(curve["losses"], means, rtol=1e-12)


def flat(unet: UNet2DModel) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in unet.parameters()])


def test_proximal_gradient_is_autograd_s_of_the_explicit_term(tiny_unet: Build) -> None:
    mu, steps, (images, labels) = 3.0, 3, data()
    state, unet = new_state(tiny_unet), tiny_unet().train()
    losses = train(state, images, labels, CONFIG, steps, proximal_mu=mu)

    draw, optimizer = torch.Generator().manual_seed(1), torch.optim.Adam(unet.parameters(), lr=2e-3)
    start = [parameter.detach().clone() for parameter in unet.parameters()]
    alphas = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    plain, terms = [], []
    for _ in range(steps):
        rows = torch.randint(len(images), (8,), generator=draw)
        t = torch.randint(1000, (8,), generator=draw)
        noise = torch.randn(8, 1, 8, 8, generator=draw)
        alpha_bar = alphas[t].float()[:, None, None, None]
        noisy = alpha_bar.sqrt() * images[rows] + (1 - alpha_bar).sqrt() * noise
        loss = (unet(noisy, t, class_labels=labels[rows]).sample - noise).square().mean()
        distance = sum((w - s).square().sum() for w, s in zip(unet.parameters(), start, strict=True))
        optimizer.zero_grad()
        (loss + mu / 2 * distance).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        plain.append(float(loss.detach()))
        terms.append(mu / 2 * float(distance.detach()))
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    assert terms[0] == 0
    assert min(terms[1:]) > 0.02, "the term must matter for the test to mean anything"
    # Another mu by one per cent makes 3e-3 and 7e-3 of these.
    gradients = [torch.cat([w.grad.flatten() for w in one.parameters()]) for one in (state.unet, unet)]
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
    moved = flat(unet) - torch.cat([s.flatten() for s in start])
    assert (flat(state.unet) - flat(unet)).norm() < 3e-4 * moved.norm()


@pytest.mark.parametrize("first_step", [0, 4])
def test_the_default_recipe_s_training_is_that_of_a_loop_by_hand(first_step: int, tiny_unet: Build) -> None:
    """x_0 under the cosine schedule, weighted by min(SNR + 1, 5), AdamW, warm-up and half a cosine."""
    steps, (images, labels) = 3, data()
    state = TrainingState(tiny_unet(), RECIPES["default"], torch.Generator().manual_seed(1), 12, first_step)
    losses = train(state, images, labels, CONFIG, steps)

    draw, unet = torch.Generator().manual_seed(1), tiny_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.0, weight_decay=0.01)
    start, alphas, by_hand = flat(unet), torch.from_numpy(alphas_of("cosine")), []
    for step in range(first_step, first_step + steps):
        rows = torch.randint(len(images), (8,), generator=draw)
        t = torch.randint(1000, (8,), generator=draw)
        noise = torch.randn(8, 1, 8, 8, generator=draw)
        alpha_bar = alphas[t].float()[:, None, None, None]
        noisy = alpha_bar.sqrt() * images[rows] + (1 - alpha_bar).sqrt() * noise
        said = unet(noisy, t, class_labels=labels[rows]).sample
        # All pixels are black or white, and what lies beyond that is clipped.
        errors = (torch.where(images[rows] > 0, said.clamp(max=1), said.clamp(min=-1)) - images[rows]).square()
        loss = (errors * (1 / (1 - alpha_bar)).clamp(max=5)).mean()
        optimizer.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / 12)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        by_hand.append(float(loss.detach()))
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    assert (flat(state.unet) - flat(unet)).norm() < 1e-2 * (flat(unet) - start).norm()


def test_the_rate_follows_the_steps_of_the_whole_training_however_it_is_cut(tiny_unet: Build) -> None:
    whole, cut = (new_state(tiny_unet, RECIPES["default"], 8) for _ in range(2))
    train(whole, *data(), CONFIG, 6)
    for until in (1, 4, 6):
        train(cut, *data(), CONFIG, until)
    assert_same(whole, cut)
    rate = 1.5e-3 * (1 + math.cos(math.pi * 5 / 8)) / 2
    assert [group["lr"] for group in whole.optimizer.param_groups] == [pytest.approx(rate, rel=1e-12)]
    # Another round, with an optimiser of its own, goes on where the last one was.
    later = TrainingState(tiny_unet(), RECIPES["default"], torch.Generator().manual_seed(1), 8, 5)
    train(later, *data(), CONFIG, 1)
    assert later.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_learns(kind: str, tiny_unet: Build) -> None:
    """Its held-out loss, whatever it is of, falls well below that of the first network."""
    recipe = RECIPES["default"].model_copy(update=KINDS[kind].model_dump(include={"prediction", "schedule"}))
    state = new_state(tiny_unet, recipe.model_copy(update={"learning_rate": 5e-3, "ema_decay": 0.5}), 25)
    held_out = HeldOutLoss(*data(), recipe, torch.Generator().manual_seed(0))
    before = held_out(state.unet)
    train(state, *data(), CONFIG, 25)
    assert held_out(state.averaged_unet()) < 0.7 * before


@pytest.mark.parametrize("codec", ["pixels", "unshuffle-2", "unshuffle-4"])
def test_stored_images_train_as_their_samples_do(codec: str) -> None:
    made = make_codec(codec, ImageSpec(1, 16, ("a", "b")))
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), dtype=np.uint8)
    states = []
    for source in (EncodedImages(images, made), made.encode(images)):
        unet = build_unet("digits", made.grid, torch.Generator().manual_seed(0), (8, 8), 1)
        states.append(TrainingState(unet, RECIPES["default"], torch.Generator().manual_seed(1), 3))
        train(states[-1], source, torch.arange(6) % 2, CONFIG, 3)
    assert_same(*states)


def test_first_step_of_a_call_and_mu_zero_feel_no_proximal_term(tiny_unet: Build) -> None:
    states = [new_state(tiny_unet) for _ in range(2)]
    for state, mu in zip(states, (0.0, 7.0), strict=True):
        for steps in (1, 2):
            train(state, *data(), CONFIG, steps, proximal_mu=mu)
    assert_same(*states)


def test_oversampling_draws_every_class_alike_and_the_images_of_a_class_alike(
    tiny_unet: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, draws = {0: 2, 2: 18, 5: 80}, 40 * 256
    labels = torch.cat([torch.full((count,), label) for label, count in counts.items()])
    labels = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    batches: list[torch.Tensor] = []
    monkeypatch.setattr(training, "_step", lambda state, scheduler, batch, *_: batches.append(batch) or 0.0)
    config = Training(batch_size=256, oversample=True)
    images = torch.arange(100.0)[:, None, None, None].expand(100, 1, 2, 2)
    train(new_state(tiny_unet), images, labels, config, draws // 256)
    rows = torch.cat([clean[:, 0, 0, 0].long() for clean, *_ in batches])
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels[rows])
    expected = np.array([1 / 3 / counts[int(label)] for label in labels])
    std = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(np.bincount(rows, minlength=100) / draws - expected) < 4.5 * std).all()
    for label in counts:
        assert float((labels[rows] == label).double().mean()) == pytest.approx(1 / 3, abs=0.02)
