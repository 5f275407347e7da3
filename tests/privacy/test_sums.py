"""Secure sums: what the server learns is the sum, exactly, whoever drops out and however often it is tried."""

from __future__ import annotations

import json

import numpy as np
import pytest
from summing_silos import Silos, drawn_values, names_of, weighted

from fedsynth.privacy.sums import Memory, PublicKeys, SecretKeys, SumError, from_ring, threshold, to_ring
from fedsynth.privacy.sums.fixed_point import LARGEST, STEP, to_fixed, to_float
from fedsynth.privacy.sums.masks import combine, mask, new_seed, seal, share, unseal


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_the_sum_is_exact_up_to_rounding(count: int) -> None:
    silos = Silos(count)
    terms, values = silos.terms(1000), drawn_values(silos, 1000)
    server = silos.collect(terms, values)
    silos.reveal(terms, server)
    total = server.total()
    assert np.abs(total - weighted(terms, values, values)).max() <= count * STEP / 2
    # Of the rounded numbers the sum is exact, not near.
    rounded = sum(np.rint(terms.row(name)[0] * values[name] / STEP) for name in values)
    assert np.array_equal(total / STEP, rounded)


@pytest.mark.parametrize(("count", "gone"), [(4, 1), (7, 1), (7, 2), (10, 1), (10, 3)])
def test_who_drops_out_costs_the_others_nothing(count: int, gone: int) -> None:
    assert gone <= count - threshold(count)
    silos = Silos(count)
    terms, values = silos.terms(500), drawn_values(silos, 500)
    absent = names_of(count)[1 : 1 + gone]
    server = silos.collect(terms, values, absent)
    assert server.dropped == tuple(absent)
    silos.reveal(terms, server)
    assert np.abs(server.total() - weighted(terms, values, server.survivors)).max() <= count * STEP / 2


def test_with_one_more_gone_there_is_no_sum() -> None:
    silos = Silos(10)
    with pytest.raises(SumError, match="6 of 10 silos are left, 7 are needed"):
        silos.collect(silos.terms(5), drawn_values(silos, 5), names_of(4))


def test_after_everybody_has_answered_as_many_may_fall_silent() -> None:
    silos = Silos(10)
    terms, values = silos.terms(100), drawn_values(silos, 100)
    server = silos.collect(terms, values)
    silos.reveal(terms, server, silent=names_of(3))
    assert server.still_needed == ()
    assert np.abs(server.total() - weighted(terms, values, values)).max() <= 10 * STEP / 2


def test_after_a_drop_out_the_server_waits_for_all_survivors_and_may_ask_again() -> None:
    silos = Silos(10)
    terms, values = silos.terms(100), drawn_values(silos, 100)
    server = silos.collect(terms, values, absent=["silo-09"])
    silos.reveal(terms, server, silent=["silo-00"])
    assert server.still_needed == ("silo-00",)
    with pytest.raises(SumError, match="silo-00 must reveal first"):
        server.total()
    silos.reveal(terms, server)
    assert np.abs(server.total() - weighted(terms, values, server.survivors)).max() <= 10 * STEP / 2


def test_an_attempt_that_came_to_nothing_is_made_again_under_other_masks() -> None:
    silos = Silos(5)
    values = drawn_values(silos, 50)
    silos.collect(silos.terms(50), values)
    again = silos.terms(50, attempt="second")
    server = silos.collect(again, values)
    silos.reveal(again, server)
    assert np.abs(server.total() - weighted(again, values, values)).max() <= 5 * STEP / 2


def test_what_a_silo_remembers_survives_its_process() -> None:
    silos = Silos(4)
    terms, values = silos.terms(10), drawn_values(silos, 10)
    server = silos.collect(terms, values)
    silos.sides = {
        name: silos.side(name, Memory.from_dict(json.loads(json.dumps(side.memory.to_dict()))))
        for name, side in silos.sides.items()
    }
    silos.reveal(terms, server)
    assert np.abs(server.total() - weighted(terms, values, values)).max() <= 4 * STEP / 2


def test_whole_numbers_are_summed_modulo_two_to_the_32() -> None:
    silos = Silos(5)
    terms = silos.terms(1000)
    rng = np.random.default_rng(0)
    numbers = {name: rng.integers(-(2**40), 2**40, 1000) for name in silos.sides}
    server = silos.server(terms)
    for name, side in silos.sides.items():
        server.add_answer(name, side.mask(terms, to_ring(numbers[name])))
    server.close()
    silos.reveal(terms, server)
    true = np.sum(list(numbers.values()), axis=0)
    assert np.array_equal(from_ring(server.numbers()), (true + 2**31) % 2**32 - 2**31)


def test_numbers_of_another_kind_or_number_are_not_masked() -> None:
    silos = Silos(3)
    terms = silos.terms(4)
    for numbers in (np.zeros(4, np.int64), np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32)):
        with pytest.raises(SumError, match="for a sum of 4, uint32"):
            silos.sides["silo-00"].mask(terms, numbers)


def test_one_answer_looks_like_noise() -> None:
    silos = Silos(3)
    terms = silos.terms(20_000)
    masked = silos.sides["silo-00"].answer(terms, np.zeros(20_000), 1 / 3).masked
    # Uniform on 0 to 2**32 - 1: mean .5 with standard error .002, and no byte more frequent than chance allows.
    assert abs(masked.mean() / 2**32 - 0.5) < 0.01
    assert np.bincount(masked.view(np.uint8), minlength=256).std() < 3 * (80_000 / 256) ** 0.5


def test_fixed_point_clamps_rounds_and_wraps() -> None:
    values = np.array([0.0, STEP, 0.4 * STEP, -1.5, 1e30, -1e30])
    assert to_float(to_fixed(values)).tolist() == [0.0, STEP, 0.0, -1.5, LARGEST, -LARGEST]
    assert to_float(to_fixed(np.array([3.0]), 0.25) + to_fixed(np.array([-8.0]), 0.25)).tolist() == [-1.25]
    for bad in (np.nan, np.inf):
        with pytest.raises(SumError, match="not finite"):
            to_fixed(np.array([bad]))


def test_any_shares_give_the_seed_back_and_one_fewer_say_nothing() -> None:
    rng, names = np.random.default_rng(0), names_of(10)
    seed = new_seed()
    shares = share(seed, names, 7)
    for _ in range(20):
        some = {str(name): shares[str(name)] for name in rng.permutation(names)[:7]}
        assert combine(some, names, 7) == seed
    with pytest.raises(SumError, match="6 shares of a seed, 7 are needed"):
        combine({name: shares[name] for name in names[:6]}, names, 7)
    # Whatever the seed, six given shares fit it: another seventh leads to another seed.
    other = {**{name: shares[name] for name in names[:6]}, names[6]: bytes(16)}
    assert combine(other, names, 7) != seed


def test_masks_follow_from_their_seed_alone() -> None:
    seed = new_seed()
    assert np.array_equal(mask(seed, 100), mask(seed, 200)[:100])
    assert not np.array_equal(mask(seed, 100), mask(new_seed(), 100))


def test_what_is_sealed_opens_with_its_key_alone_and_unchanged() -> None:
    key, sealed = bytes(32), seal(bytes(32), b"share")
    assert unseal(key, sealed) == b"share"
    assert unseal(b"\1" * 32, sealed) is None
    assert unseal(key, b"") is None
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert unseal(key, bytes(changed)) is None


def test_two_silos_derive_one_key_for_each_purpose() -> None:
    one, other, third = (SecretKeys.generate() for _ in range(3))
    assert one.derive(other.public, "pair", "x") == other.derive(one.public, "pair", "x")
    derived = {
        one.derive(other.public, "pair", "x"),
        one.derive(other.public, "pair", "y"),
        one.derive(other.public, "share", "x"),
        one.derive(third.public, "pair", "x"),
    }
    assert len(derived) == 4


def test_keys_go_through_text_and_bytes() -> None:
    keys = SecretKeys.generate()
    assert SecretKeys(keys.secret).public == keys.public == PublicKeys.from_text(keys.public.text)
    assert keys.public.has_signed(keys.sign(b"list"), b"list")
    assert not keys.public.has_signed(keys.sign(b"list"), b"other list")
    assert not keys.public.has_signed(b"short", b"list")
    for bad in ("", "0" * 127, "G" * 128, 3):
        with pytest.raises(SumError, match="128 hexadecimal digits"):
            PublicKeys.from_text(bad)


def test_a_key_with_which_every_secret_is_zero_is_refused() -> None:
    with pytest.raises(SumError, match="no secret can be agreed on"):
        SecretKeys.generate().derive(PublicKeys(bytes(32), bytes(32)), "pair")


def test_thresholds_are_more_than_two_thirds() -> None:
    assert [threshold(count) for count in (3, 4, 5, 6, 7, 10, 100)] == [3, 3, 4, 5, 5, 7, 67]
    assert all(3 * threshold(count) > 2 * count for count in range(3, 200))
