from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fedsynth.seeding import derive_seed, initial_weights, make_generator


def test_is_stable() -> None:
    assert derive_seed(0, "initial-weights") == 3_302_864_358_522_160_434
    assert derive_seed(7, "local-training", "silo-3", 12) == 2_152_854_496_101_847_294


def test_streams_are_apart() -> None:
    seeds = [
        derive_seed(0, "noise"),
        derive_seed(1, "noise"),
        derive_seed(0, "batches"),
        derive_seed(0, "noise", 1),
        derive_seed(0, "noise", 1, 2),
        derive_seed(0, "noise", 2, 1),
        derive_seed(0, "noise", 12),
        derive_seed(0, "noise", "silo-1", 2),
        derive_seed(1, "noise", 0),
        derive_seed(10, "noise"),
    ]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_a_signed_word_and_spread_over_it() -> None:
    seeds = [derive_seed(0, "noise", number) for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert 0.4 < sum(seed >= 2**62 for seed in seeds) / 2000 < 0.6


def test_generator_follows_the_seed_and_nothing_global() -> None:
    before = torch.get_rng_state()
    one, same, other = (torch.randn(5, generator=make_generator(0, "noise", part)) for part in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert make_generator(0, "noise", 1).initial_seed() == derive_seed(0, "noise", 1)
    assert make_generator(0, "noise").device == torch.device("cpu")


def test_threads_get_the_initial_weights_of_their_seed_and_the_global_state_stays() -> None:
    def weights(seed: int) -> torch.Tensor:
        with initial_weights(seed):
            return torch.cat([torch.nn.Linear(20, 20).weight for _ in range(20)])

    before, expected = torch.get_rng_state(), [weights(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(weights, range(40)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
