from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from exact_networks import KINDS, alphas_of

from fedsynth.config import RECIPES, Recipe, Training
from fedsynth.data import load_dataset
from fedsynth.diffusion import (
    HeldOutLoss,
    TrainingState,
    build_unet,
    check_steps,
    early_stopping,
    to_model_range,
    train,
    train_early_stopping,
)
from fedsynth.diffusion.early_stopping import out_of_patience
from fedsynth.spec import ImageSpec

PAPER = RECIPES["paper"]
Build = Callable[..., UNet2DModel]
Data = tuple[torch.Tensor, torch.Tensor]


def digits(first: int, last: int) -> Data:
    images = load_dataset("digits")[0]
    return to_model_range(images.images[first:last]), torch.from_numpy(images.labels[first:last])


def fresh_loss(data: Data, seed: int = 0, recipe: Recipe = PAPER) -> HeldOutLoss:
    return HeldOutLoss(*data, recipe, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("losses", "out"),
    [
        ([], False),
        ([1.0, 1.0, 1.1], False),
        ([1.0, 1.0, 1.1, 1.2], True),
        ([0.5, 0.6, 0.7, 0.49], False),
        ([0.5, 0.6, 0.7, 0.499], True),
        ([0.5, 0.496, 0.492, 0.488, 0.484], False),
        ([0.9, 0.8, 0.9, 0.9, 0.7, 0.9, 0.9], False),
        ([0.9, 0.8, 0.9, 0.9, 0.7, 0.9, 0.9, 0.7], True),
    ],
    ids=str,
)
def test_patience_ends_after_three_checks_without_a_hundredth_of_progress(losses: list[float], out: bool) -> None:
    assert out_of_patience(losses, patience=3, min_delta=0.01) == out


def test_steps_below_the_least_progress_add_up() -> None:
    slow = [0.9996**k for k in range(100)]
    assert not any(out_of_patience(slow[:count]) for count in range(100))
    assert out_of_patience([0.9999**k for k in range(100)])


@pytest.mark.parametrize(
    ("budget", "first", "count"),
    [(1, 1, 1), (50, 50, 1), (51, 50, 2), (900, 50, 18), (2000, 100, 20), (10_000, 500, 20)],
)
def test_checks_come_regularly_and_at_the_end(budget: int, first: int, count: int) -> None:
    steps = check_steps(budget)
    assert (steps[0], steps[-1], len(steps)) == (first, budget, count)
    assert {after - before for before, after in itertools.pairwise(steps[:-1])} <= {first}


def test_loss_is_the_error_over_the_drawn_pairs(tiny_unet: Build) -> None:
    (images, labels), unet = digits(0, 9), tiny_unet().train()
    images, labels = images, labels % 3
    draw = torch.Generator().manual_seed(4)
    rows = torch.cat([torch.randperm(9, generator=draw) for _ in range(29)])[:256]
    t = ((np.arange(256) + torch.rand(256, generator=draw, dtype=torch.float64).numpy()) * 1000 / 256).astype(int)
    noise = torch.randn(256, 1, 8, 8, generator=draw)
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t][:, None, None, None]
    noisy = (alpha_bar.sqrt() * images[rows].double() + (1 - alpha_bar).sqrt() * noise.double()).float()
    with torch.no_grad():
        predicted = unet.eval()(noisy, torch.from_numpy(t), class_labels=labels[rows]).sample
    expected = float((predicted.double() - noise.double()).square().mean())
    assert fresh_loss((images, labels), 4)(unet) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recipe", [*RECIPES.values(), *KINDS.values()], ids=[*RECIPES, *KINDS])
def test_loss_is_the_recipe_s_own_over_stratified_levels(recipe: Recipe) -> None:
    """A network that takes black images for brighter ones by 0.1."""
    (images, labels), alphas = digits(0, 300), alphas_of(recipe.schedule)

    class Wrong(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.device_of = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
            alpha_bar = torch.from_numpy(alphas)[t][:, None, None, None]
            noise = (x.double() - alpha_bar.sqrt() * 0.1) / (1 - alpha_bar).sqrt()
            velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * 0.1
            said = {"epsilon": noise, "x0": torch.full_like(noise, 0.1), "v": velocity}
            return SimpleNamespace(sample=said[recipe.prediction])

    loss = HeldOutLoss(torch.zeros_like(images), labels, recipe, torch.Generator().manual_seed(0))
    snr_1 = 1 / (1 - alphas)
    weight = {"epsilon": snr_1 - 1, "x0": np.ones(1000), "v": snr_1}[recipe.prediction]
    weight = np.minimum(snr_1, recipe.snr_gamma) if recipe.loss_weighting == "min-snr" else weight
    found = loss(Wrong())  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    torch.randperm(300, generator=draw)
    levels = (np.arange(256) + torch.rand(256, generator=draw, dtype=torch.float64).numpy()) * 1000 / 256
    assert found == pytest.approx(0.01 * weight[levels.astype(int)].mean(), rel=1e-2)


def test_check_leaves_training_as_it_was(tiny_unet: Build) -> None:
    data, config = digits(0, 3), Training(batch_size=4)
    recipe = PAPER.model_copy(update={"learning_rate": 1e-2})
    data = data[0], data[1] % 3
    checked, plain = (TrainingState(tiny_unet(), recipe, torch.Generator().manual_seed(1), 3) for _ in range(2))
    for steps in (1, 2, 3):
        train(checked, *data, config, steps)
        checked.note_held_out_loss(fresh_loss(data))
    train(plain, *data, config, 3)
    assert checked.losses == plain.losses
    weights = plain.unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in checked.unet.state_dict().items())


def test_network_that_learns_by_heart_is_stopped_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six digits: training with a check on others at every 10th step, and what becomes of it up to step 130."""
    monkeypatch.setattr(early_stopping, "MIN_INTERVAL", 10)
    monkeypatch.setattr(early_stopping, "PAIRS", 64)
    spec = ImageSpec(1, 8, tuple(map(str, range(10))))
    config, recipe = Training(batch_size=16), PAPER.model_copy(update={"learning_rate": 5e-3, "ema_decay": 0.9})
    unet = build_unet("digits", spec, torch.Generator().manual_seed(0), (16, 16), 1)
    state = TrainingState(unet, recipe, torch.Generator().manual_seed(1), 130)
    held_out, train_on = fresh_loss(digits(500, 516)), digits(0, 6)
    assert train_early_stopping(state, held_out, *train_on, config, 130)
    losses, steps = list(state.held_out_losses), state.steps
    assert train_early_stopping(state, held_out, *train_on, config, 130)
    assert (state.held_out_losses, state.steps) == (losses, steps), "what has ended does not go on"
    assert 10 * len(losses) == state.steps < 130
    assert np.argmin(losses) < len(losses) - 1, "the last weights are not the best"

    kept = copy.deepcopy(state).averaged_unet()
    assert held_out(kept) == min(losses), "the weights of the best check are kept"
    state.best_weights = []
    train(state, *train_on, config, 130)
    memorised = state.averaged_unet()
    assert held_out(memorised) > 1.15 * held_out(kept)
    other_pairs = fresh_loss(digits(600, 640), seed=9)
    assert other_pairs(memorised) > 1.1 * other_pairs(kept), "on other digits and noise too"


def test_checkpoint_from_before_there_were_checks_is_continued(tiny_unet: Build) -> None:
    config = Training(batch_size=4)
    before, again = (TrainingState(tiny_unet(), PAPER, torch.Generator().manual_seed(1), 2) for _ in range(2))
    images, labels = digits(0, 3)
    train(before, images, labels % 3, config, 2)
    saved = before.state_dict()
    del saved["held-out-losses"], saved["best-weights"]
    again.load_state_dict(saved)
    assert (again.steps, again.held_out_losses, again.best_weights) == (2, [], [])
