"""DP-SGD: sampling, noise and scale of a step, and trainings that are cut into parts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsynth.config import RECIPES, RunConfig
from fedsynth.diffusion import EncodedImages, TrainingState, build_unet, make_codec
from fedsynth.errors import UserError
from fedsynth.privacy import Mechanism, dp_training, epsilon
from fedsynth.privacy.dp_training import (
    DPSGD,
    SummedStep,
    mechanism_of,
    noised_whole_sum,
    private_training,
    secret_generator,
    summed_training_step,
    train_privately,
)
from fedsynth.privacy.gradients import MOST_NORM, clipped_gradient_sum
from fedsynth.privacy.summed_noise import SummedNoise
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, ("across", "down"))
RECIPE = RECIPES["default"].model_copy(update={"warmup_steps": 0, "learning_rate": 2e-3})


def stripes(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    stripe = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    return torch.stack([stripe if label else stripe.T for label in labels])[:, None].contiguous(), labels


def new_state(total_steps: int = 10, seed: int = 1) -> TrainingState:
    unet = build_unet("digits", SPEC, torch.Generator().manual_seed(0), (8, 8), 1)
    return TrainingState(unet, RECIPE, torch.Generator().manual_seed(seed), total_steps)


def config_of(sigma: float = 0.5, rate: float = 0.5, **changes: Any) -> DPSGD:
    return replace(DPSGD(Mechanism(sigma, rate), clip=1.0, multiplicity=2, denominator=3.0), **changes)


def weights(state: TrainingState) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in state.unet.parameters()])


def test_cut_into_calls_and_files_it_is_the_same_training(tmp_path: Path) -> None:
    whole, parts = new_state(), new_state()
    train_privately(whole, *stripes(), config_of(), 4)
    train_privately(parts, *stripes(), config_of(), 1)
    parts.save(tmp_path / "state.pt", "owner")
    resumed = new_state(seed=5)
    assert resumed.resume(tmp_path / "state.pt", "north", "owner")
    train_privately(resumed, *stripes(), config_of(), 4)
    assert torch.equal(weights(resumed), weights(whole))
    assert all(map(torch.equal, resumed.ema.shadow_params, whole.ema.shadow_params))
    assert resumed.steps == 4
    assert all(math.isnan(loss) for loss in resumed.losses)


def test_each_image_is_drawn_independently_with_the_sampling_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def note(network: Any, loss: Any, records: tuple[torch.Tensor, ...], *rest: Any) -> dict[str, torch.Tensor]:
        drawn.append(records[0][:, 0, 0, 0, 0].tolist())
        return {name: torch.zeros_like(value) for name, value in network.named_parameters()}

    monkeypatch.setattr(dp_training, "clipped_gradient_sum", note)
    images = torch.arange(50.0)[:, None, None, None].expand(50, 1, 8, 8)
    train_privately(new_state(120), images, torch.zeros(50, dtype=torch.long), config_of(rate=0.3), 120)
    sizes = torch.tensor([float(len(rows)) for rows in drawn])
    assert all(rows == sorted(set(rows)) for rows in drawn), "nobody twice"
    # Binomial(50, .3): mean 15, variance 10.5; four standard errors of 120 draws.
    assert abs(float(sizes.mean()) - 15) < 4 * math.sqrt(10.5 / 120)
    assert float(sizes.var()) == pytest.approx(10.5, rel=0.5)
    counts = torch.bincount(torch.tensor([row for rows in drawn for row in rows]).long(), minlength=50)
    assert int(counts.min()) > 36 - 4 * math.sqrt(120 * 0.3 * 0.7)


def test_noise_is_sigma_times_clip_whatever_is_drawn() -> None:
    state, config = new_state(), config_of(sigma=3.0, rate=1e-9, clip=0.2, denominator=4.0)
    train_privately(state, *stripes(), config, 1)
    gradients = torch.cat([value.grad.flatten() for value in state.unet.parameters() if value.grad is not None])
    assert len(gradients) > 10_000
    assert float(gradients.std()) == pytest.approx(3.0 * 0.2 / 4.0, rel=0.03)


def test_every_draw_of_an_image_is_a_variant_of_it_at_another_level(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []

    def note(network: Any, loss: Any, records: tuple[torch.Tensor, ...], *rest: Any) -> dict[str, torch.Tensor]:
        seen.append(records)
        return {name: torch.zeros_like(value) for name, value in network.named_parameters()}

    monkeypatch.setattr(dp_training, "clipped_gradient_sum", note)
    pixels = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1).expand(4, 8, 8, 1).numpy()
    images = EncodedImages(pixels, make_codec("pixels", SPEC), ("flip",))
    train_privately(new_state(), images, torch.tensor([0, 1, 0, 1]), config_of(rate=1.0, multiplicity=8), 1)
    clean, noise, t, labels = seen[0]
    assert clean.shape == noise.shape == (4, 8, 1, 8, 8)
    assert torch.equal(labels, torch.tensor([[0] * 8, [1] * 8] * 2))
    # One level in each eighth of the schedule.
    assert torch.equal(t // 125, torch.arange(8).expand(4, 8))
    assert 2 <= len({image.numpy().tobytes() for image in clean.flatten(0, 1)}) <= 2
    assert len({image.numpy().tobytes() for image in noise.flatten(0, 1)}) == 32


def test_little_noise_learns_and_much_noise_does_not() -> None:
    def error(sigma: float) -> float:
        state = new_state(14)
        train_privately(state, *stripes(), config_of(sigma=sigma, rate=1.0, multiplicity=4), 14)
        images, labels = stripes()
        with torch.no_grad():
            t = torch.full((6,), 500)
            noisy = images * 0.7 + 0.7 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
            return float((state.unet(noisy, t, class_labels=labels).sample - images).square().mean())

    assert error(0.05) < 0.5 < error(50.0)


def test_proximal_term_pulls_without_noise() -> None:
    free, pulled = new_state(), new_state()
    for state, mu in ((free, 0.0), (pulled, 100.0)):
        start = weights(state).clone()
        train_privately(state, *stripes(), config_of(), 6, proximal_mu=mu)
        state.seconds = float((weights(state) - start).norm())
    assert pulled.seconds < 0.8 * free.seconds


def test_secret_generators_differ() -> None:
    assert secret_generator().initial_seed() != secret_generator().initial_seed()


@pytest.mark.parametrize(("strategy", "trainings"), [("dfd", 1), ("fedavg", 1), ("fedddpm", 2)])
def test_noise_is_for_all_steps_of_a_run(strategy: str, trainings: int) -> None:
    config = RunConfig.from_run_config(
        {"strategy": strategy, "dp-epsilon": 1.0, "dp-steps": 50, "dp-sampling-rate": 1.0}
    )
    mechanism = mechanism_of(config)
    assert mechanism.steps == 50 * trainings
    assert 0.99 < epsilon([mechanism], 1e-5) <= 1
    assert private_training(config, 300).denominator == 300
    assert private_training(config, 0).denominator == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dp-clip": 0.5}, "dp-clip = 0.5: acts with dp-epsilon = a number only"),
        ({"dp-epsilon": 1.0, "oversample": True}, "oversample = True: acts with dp-epsilon = 'none' only"),
        ({"dp-epsilon": 1.0, "train-steps": 500}, "train-steps = 500: acts with dp-epsilon = 'none' only"),
        ({"dp-epsilon": 1.0, "batch-size": 8}, "batch-size = 8: acts with dp-epsilon = 'none' only"),
        ({"dp-epsilon": 0.0}, "dp-epsilon = 0.0: must be 'none' or a number > 0 and <= 100"),
        ({"dp-epsilon": 1.0, "evaluate-silos": True}, "evaluate-silos = true"),
        ({"dp-epsilon": 1.0, "strategy": "centralised"}, "trains on all images at the server"),
        ({"dp-epsilon": 1.0, "strategy": "fedddpm-plus"}, "acts on the silos' losses"),
        ({"dp-epsilon": 1.0, "strategy": "mine:Own"}, "what strategy = 'mine:Own' has silos train is not known"),
        (
            {"dp-epsilon": 1.0, "strategy": "fedavg", "dp-steps": 10, "num-rounds": 20},
            "num-rounds = 20: must be <= dp-steps = 10",
        ),
    ],
)
def test_keys_that_do_not_go_with_it_are_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig.from_run_config(given)
    assert says in str(caught.value)


def test_steps_of_a_private_run_are_its_own() -> None:
    config = RunConfig.from_run_config({"dp-epsilon": 3, "dp-steps": 70})
    assert config.private
    assert config.own_steps == config.train_steps == 70
    plain = RunConfig.from_run_config({"train-steps": 90})
    assert not plain.private
    assert plain.own_steps == plain.train_steps == 90


def summed_step(norm: int = MOST_NORM, sigma: float = 0.05, rate: float = 1.0) -> SummedStep:
    return SummedStep(SummedNoise(sigma, 3, 0, norm), rate, clip=1.0, multiplicity=2)


def test_without_noise_a_summed_step_is_one_on_the_plain_clipped_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three silos' answers, each with a share of no noise, against one sum over all images and one optimiser step."""
    monkeypatch.setattr(dp_training, "discrete_gaussian", lambda std, size, bits: np.zeros(size, np.int64))
    sums, plain = new_state(), new_state()
    images, labels = stripes()
    drawn: list[tuple[torch.Tensor, ...]] = []
    draws = dp_training._draws

    def note(*args: Any) -> tuple[torch.Tensor, ...]:
        drawn.append(draws(*args))
        return drawn[-1]

    monkeypatch.setattr(dp_training, "_draws", note)
    parts = [(images[n : n + 2], labels[n : n + 2]) for n in (0, 2, 4)]
    total = sum(noised_whole_sum(sums.unet, RECIPE, *part, summed_step()) for part in parts)
    summed_training_step(sums, torch.from_numpy(total), 1.0, MOST_NORM, 3.0)
    batch = tuple(torch.cat(part) for part in zip(*drawn, strict=True))
    loss = dp_training._record_loss(RECIPE, torch.device("cpu"))
    gradients = clipped_gradient_sum(plain.unet, loss, batch, 1.0)
    for name, parameter in plain.unet.named_parameters():
        parameter.grad = gradients[name] / 3.0
    plain.set_learning_rate()
    plain.optimizer.step()
    plain.ema.step(plain.unet.parameters())
    # Adam divides by a gradient's size: where that is nearly 0, rounding decides the direction of a step of the rate.
    moved = (weights(sums) - weights(plain)).abs()
    assert float((moved < 1e-5).float().mean()) > 0.97
    assert sums.steps == 1


def test_answers_of_several_silos_have_the_noise_of_the_sum() -> None:
    """Of three silos one may help the server: the shares of two make the noise, three have half as much again."""
    step = replace(summed_step(sigma=2.0), noise=SummedNoise(2.0, 3, 1, 1000))
    state = new_state()
    rng = np.random.default_rng(5)
    nothing = torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64)
    answers = [noised_whole_sum(state.unet, RECIPE, *nothing, step, rng.bytes) for _ in range(3)]
    share = math.sqrt((2.0 * 1000) ** 2 / 2)
    for answer in answers:
        assert answer.std() == pytest.approx(share, rel=0.05)
    assert sum(answers[:2]).std() == pytest.approx(2.0 * 1000, rel=0.05)
    assert np.corrcoef(answers[0], answers[1])[0, 1] == pytest.approx(0, abs=0.05)
