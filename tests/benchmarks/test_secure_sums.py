from __future__ import annotations

from experiments.benchmarks.secure_sums import measure


def test_a_round_is_exact_to_rounding_and_small_beside_its_numbers() -> None:
    cost = measure((1, 8, 8), absent=(3,), num_samples=20)
    # Ten numbers, each rounded to a multiple of 2**-16: a uniform error of std 2**-16 / sqrt(12), over .9 of weight.
    assert cost.error < 2**-16
    assert cost.extra_bytes < 2000
