"""How silos share the noise of a sum: what is left of it towards whom, and what fits into 32 bits."""

from __future__ import annotations

import math

import pytest

from fedsynth.errors import UserError
from fedsynth.privacy import epsilon
from fedsynth.privacy.discrete_gaussian import LOST_VARIANCE
from fedsynth.privacy.summed_noise import SummedNoise, fitting_norm, honest_silos
from fedsynth.privacy.sums import threshold


@pytest.mark.parametrize(("silos", "colluders", "honest"), [(3, 0, 3), (3, 2, 1), (4, 1, 2), (10, 1, 6), (10, 3, 4)])
def test_the_shares_of_honest_survivors_alone_make_the_noise(silos: int, colluders: int, honest: int) -> None:
    noise = SummedNoise(3.6, silos, colluders, norm=50_000)
    assert noise.honest == honest_silos(silos, colluders) == honest
    proven = math.sqrt(honest * noise.share**2 - LOST_VARIANCE) / noise.norm
    assert 3.6 <= proven < 3.6 * (1 + 1e-4)


def test_the_public_faces_more_noise_than_a_server_that_silos_help() -> None:
    noise = SummedNoise(3.6, 10, 3, norm=50_000)
    server, public = (epsilon([towards(0.5, 200)], 1e-5) for towards in (noise.towards_server, noise.towards_public))
    assert server == pytest.approx(10.0, abs=0.15)  # METHODS' table: 3.6 for ε = 10 at q = .5, T = 200
    assert public < 0.8 * server
    assert noise.towards_public(0.5).noise_multiplier == pytest.approx(3.6 * math.sqrt(threshold(10) / 4))
    nobody = SummedNoise(3.6, 10, 0, norm=50_000)
    assert nobody.towards_public(0.5) == nobody.towards_server(0.5)


@pytest.mark.parametrize(("silos", "colluders", "most"), [(3, 3, 2), (4, 2, 1), (10, 4, 3), (10, -1, 3)])
def test_so_many_colluders_that_the_sum_hides_nothing_are_refused(silos: int, colluders: int, most: int) -> None:
    with pytest.raises(UserError, match=f"dp-colluders = {colluders}: must be 0 to {most} with {silos} silos"):
        SummedNoise(3.6, silos, colluders, norm=1000)


@pytest.mark.parametrize(("sigma", "silos", "images"), [(1.0, 3, 90), (3.6, 10, 15_000), (300.0, 10, 3_000)])
def test_the_largest_possible_sum_fits_into_32_bits(sigma: float, silos: int, images: int) -> None:
    norm = fitting_norm(sigma, silos, 1, images, 40_000)
    noise = SummedNoise(sigma, silos, 1, norm)
    assert images * norm + 10 * noise.share * math.sqrt(silos) < 2**31
    assert norm > 2 * math.sqrt(40_000)


def test_a_network_too_large_for_the_whole_numbers_is_refused() -> None:
    with pytest.raises(UserError, match=r"1,000,000 weights and 1,000,000 images .* choose a smaller model"):
        fitting_norm(3.6, 10, 1, 1_000_000, 1_000_000)
    with pytest.raises(UserError, match="raise dp-epsilon"):
        SummedNoise(1e6, 3, 1, 2**20)
