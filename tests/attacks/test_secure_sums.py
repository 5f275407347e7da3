"""A server, or a silo, that does not keep to the protocol of a secure sum: no answer is opened by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from summing_silos import Silos, drawn_values, names_of, weighted

from fedsynth.privacy.sums import SumError, Terms, threshold
from fedsynth.privacy.sums.fixed_point import STEP, to_float
from fedsynth.privacy.sums.masks import combine, fingerprint_of, unseal
from fedsynth.privacy.sums.silo import MaskedAnswer, add_mask, list_text

SIZE = 200
VICTIM = "silo-03"


def opened(answer: MaskedAnswer, seeds: dict[str, bytes]) -> np.ndarray:
    """Take masks off an answer of :data:`VICTIM`: pair seeds by name, its own under its name."""
    numbers = answer.masked.copy()
    for name, seed in seeds.items():
        add_mask(numbers, seed, positive=name != VICTIM and name < VICTIM)
    return to_float(numbers)


@pytest.fixture(name="silos")
def five_silos() -> Silos:
    return Silos(5)


def test_the_masks_of_an_answer_are_all_that_hides_it(silos: Silos) -> None:
    """What the attacks below would have to get: with it, an answer is open."""
    values = drawn_values(silos, SIZE)
    terms = silos.terms(SIZE)
    answer = silos.sides[VICTIM].answer(terms, values[VICTIM], 0.2)
    keys = silos.keys
    names = terms.participants
    shares = {}
    for name in names:
        key = keys[VICTIM].derive(keys[name].public, "share", VICTIM, name, terms.digest)
        shares[name] = unseal(key, answer.sealed[name])
    seeds = {name: keys[name].derive(keys[VICTIM].public, "pair", terms.digest) for name in names if name != VICTIM}
    seeds[VICTIM] = combine(shares, names, terms.threshold)
    assert np.abs(opened(answer, seeds) - 0.2 * values[VICTIM]).max() <= STEP / 2


def test_a_silo_that_is_asked_something_else_is_found_and_left_out(silos: Silos) -> None:
    values = drawn_values(silos, SIZE)
    terms, other = silos.terms(SIZE), silos.terms(SIZE, asked="the victim alone is asked this")
    server = silos.server(terms)
    for name, side in silos.sides.items():
        server.add_answer(name, side.answer(other if name == VICTIM else terms, values[name], 0.2))
    assert list(server.close()) == [VICTIM]
    silos.reveal(terms, server)
    assert np.abs(server.total() - weighted(terms, values, server.survivors)).max() <= 5 * STEP / 2


def test_a_server_that_asks_one_silo_something_else_gets_no_sum_with_it(silos: Silos) -> None:
    """It ignores what confirmations say, and puts the victim's answer into the sum: nobody reveals."""
    values = drawn_values(silos, SIZE)
    terms, other = silos.terms(SIZE), silos.terms(SIZE, asked="the victim alone is asked this")
    answers = {
        name: side.answer(other if name == VICTIM else terms, values[name], 0.2) for name, side in silos.sides.items()
    }
    for name, side in silos.sides.items():
        sealed = {giver: answer.sealed[name] for giver, answer in answers.items()}
        shown = other if name == VICTIM else terms
        with pytest.raises(SumError, match="was changed, or that silo was asked something else"):
            side.reveal(shown, terms.participants, {}, sealed)
    # And with every self-mask known to it the sum would still be noise: pair masks do not cancel.
    total = np.zeros(SIZE, np.uint32)
    for name, answer in answers.items():
        asked = other if name == VICTIM else terms
        parts = {}
        for taker in terms.participants:
            key = silos.keys[name].derive(silos.keys[taker].public, "share", name, taker, asked.digest)
            parts[taker] = unseal(key, answer.sealed[taker])
        total += answer.masked
        add_mask(total, combine(parts, terms.participants, terms.threshold), positive=False)
    assert np.abs(to_float(total)).mean() > 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda terms: replace(terms, weights=((0.1,), *terms.weights[1:])),
        lambda terms: replace(terms, run="other"),
        lambda terms: replace(terms, step=terms.step + 1),
        lambda terms: replace(terms, size=terms.size + 1),
        lambda terms: replace(terms, content="0" * 64),
        lambda terms: replace(terms, attempt="other"),
        lambda terms: replace(terms, fingerprints=("0" * 64, *terms.fingerprints[1:])),
        lambda terms: replace(
            terms,
            participants=terms.participants[:-1],
            fingerprints=terms.fingerprints[:-1],
            weights=terms.weights[:-1],
        ),
    ],
)
def test_everything_that_silos_are_told_is_bound_into_the_masks(silos: Silos, change: Callable[[Terms], Terms]) -> None:
    terms = silos.terms(SIZE)
    one, other = silos.keys["silo-00"], silos.keys["silo-01"]
    assert one.derive(other.public, "pair", terms.digest) != one.derive(other.public, "pair", change(terms).digest)


def test_a_substituted_key_is_refused_by_name(silos: Silos) -> None:
    """The server has a silo of its own in the place of another one: everybody who knows that one notices."""
    impostor = Silos(5).keys["silo-04"].public.fingerprint
    honest = silos.terms(SIZE)
    terms = replace(honest, fingerprints=(*honest.fingerprints[:-1], impostor))
    for name in names_of(4):
        with pytest.raises(SumError, match="the key of 'silo-04' is not the one that is known here"):
            silos.sides[name].answer(terms, np.zeros(SIZE), 0.2)
        assert silos.sides[name].memory.attempts == ()


def test_a_silo_that_nobody_has_pinned_is_refused_by_name(silos: Silos) -> None:
    invented = [f"sybil-{k}" for k in range(5)]
    terms = silos.terms(SIZE)
    fingerprints = tuple(keys.public.fingerprint for keys in Silos(5).keys.values())
    crowd = replace(
        terms,
        participants=(VICTIM, *invented),
        fingerprints=(silos.keys[VICTIM].public.fingerprint, *fingerprints),
        weights=((0.2,),) * 6,
    )
    with pytest.raises(SumError, match="no key of 'sybil-0' is known here"):
        silos.sides[VICTIM].answer(crowd, np.zeros(SIZE), 0.2)


def test_a_round_is_not_replayed(silos: Silos) -> None:
    values = drawn_values(silos, SIZE)
    side, terms = silos.sides[VICTIM], silos.terms(SIZE, step=5)
    side.answer(terms, values[VICTIM], 0.2)
    with pytest.raises(SumError, match="this attempt was answered before"):
        side.answer(terms, values[VICTIM], 0.2)
    with pytest.raises(SumError, match="asked before, about something else"):
        side.answer(silos.terms(SIZE, step=5, attempt="second", asked="y"), values[VICTIM], 0.2)
    fewer = [[0.25]] * 4 + [[0.0]]
    with pytest.raises(SumError, match="asked before, about something else"):
        side.answer(silos.terms(SIZE, step=5, attempt="second", weights=fewer), values[VICTIM], 0.25)
    with pytest.raises(SumError, match="step 4 after step 5: steps must rise"):
        side.answer(silos.terms(SIZE, step=4), values[VICTIM], 0.2)
    side.answer(silos.terms(SIZE, step=6), values[VICTIM], 0.2)
    with pytest.raises(SumError, match="did not answer"):
        side.sign(terms, terms.participants)


def test_no_silo_reveals_both_secrets_of_another(silos: Silos) -> None:
    """The lie: everybody is told that the victim survived, and then that it dropped out; or the other way round."""
    values = drawn_values(silos, SIZE)
    terms = silos.terms(SIZE)
    without = tuple(name for name in terms.participants if name != VICTIM)
    server = silos.collect(terms, values)
    side = silos.sides["silo-00"]
    side.reveal(terms, terms.participants, {}, server.sealed_for("silo-00"))
    with pytest.raises(SumError, match="has agreed to another list of survivors"):
        side.sign(terms, without)
    with pytest.raises(SumError, match="has agreed to another list of survivors"):
        side.reveal(terms, without, {}, server.sealed_for("silo-00"))
    again = silos.terms(SIZE, attempt="second")
    side.answer(again, values["silo-00"], 0.2)
    with pytest.raises(SumError, match="has agreed to another list of survivors"):
        side.sign(again, without)

    other = silos.sides["silo-01"]
    other.sign(terms, without)
    with pytest.raises(SumError, match="has agreed to another list of survivors"):
        other.reveal(terms, terms.participants, {}, server.sealed_for("silo-01"))


def test_a_list_that_too_few_have_signed_reveals_nothing(silos: Silos) -> None:
    terms = silos.terms(SIZE)
    server = silos.collect(terms, drawn_values(silos, SIZE))
    without = tuple(name for name in terms.participants if name != VICTIM)
    signatures = {name: silos.sides[name].sign(terms, without) for name in without[1:]}
    assert len(signatures) == terms.threshold - 1
    forged = {**signatures, without[0]: silos.keys[VICTIM].sign(list_text(terms, without))}
    for given in (signatures, forged):
        with pytest.raises(SumError, match="3 silos have signed the list of survivors, 4 are needed"):
            silos.sides[without[0]].reveal(terms, without, given, server.sealed_for(without[0]))


def test_who_has_left_a_run_s_sums_does_not_come_back(silos: Silos) -> None:
    """Two sums over nearly the same question, with and without the victim, would differ by its answer."""
    values = drawn_values(silos, SIZE)
    first = silos.terms(SIZE, step=0)
    server = silos.collect(first, values, absent=[VICTIM])
    silos.reveal(first, server)
    for name in server.survivors:
        with pytest.raises(SumError, match=f"'{VICTIM}' has left the sums of this run"):
            silos.sides[name].answer(silos.terms(SIZE, step=1), values[name], 0.2)


def opens_with(colluders: int, count: int) -> bool:
    """Whether a server opens the victim's answer in some split of the honest silos.

    It tells some that everybody survived, and the others that the victim dropped out; silos of its own help with
    everything that they know.
    """
    silos = Silos(count)
    terms, values = silos.terms(SIZE), drawn_values(silos, SIZE)
    answers = {name: side.answer(terms, values[name], 1 / count) for name, side in silos.sides.items()}
    names = terms.participants
    without = tuple(name for name in names if name != VICTIM)
    own, honest = without[:colluders], without[colluders:]

    def sealed(name: str) -> dict[str, bytes]:
        return {giver: answer.sealed[name] for giver, answer in answers.items()}

    for told_all in range(len(honest) + 1):
        sides = {name: silos.side(name, silos.sides[name].memory) for name in names}
        signatures = {name: silos.keys[name].sign(list_text(terms, without)) for name in own}
        for name in honest[told_all:]:
            signatures[name] = sides[name].sign(terms, without)
        shares = {
            name: sides[name].reveal(terms, names, {}, sealed(name)).shares[VICTIM]
            for name in (VICTIM, *honest[:told_all], *own)
        }
        seeds = {name: silos.keys[name].derive(silos.keys[VICTIM].public, "pair", terms.digest) for name in own}
        for name in honest[told_all:]:
            with suppress(SumError):
                seeds[name] = sides[name].reveal(terms, without, signatures, sealed(name)).seeds[VICTIM]
        if len(shares) >= terms.threshold:
            seeds[VICTIM] = combine(shares, names, terms.threshold)
        if len(seeds) == count and np.abs(opened(answers[VICTIM], seeds) - values[VICTIM] / count).max() <= STEP:
            return True
    return False


@pytest.mark.parametrize("count", [4, 5, 6, 7, 10])
def test_two_lists_open_no_answer_while_fewer_than_the_stated_number_help(count: int) -> None:
    assert not opens_with(0, count)
    assert not opens_with(2 * threshold(count) - count - 1, count)
    # The control: with so many that they and the victim, by its own share, give its self-mask away.
    assert opens_with(threshold(count) - 1, count)


def test_one_round_says_nothing_about_the_next(silos: Silos) -> None:
    """The victim drops out of step 0, where the others reveal its pair seeds, and comes back in step 1."""
    values = drawn_values(silos, SIZE)
    first = silos.terms(SIZE, step=0)
    server = silos.collect(first, values, absent=[VICTIM])
    for name in server.survivors:
        server.add_signature(name, silos.sides[name].sign(first, server.survivors))
    seeds = {
        name: silos.sides[name]
        .reveal(first, server.survivors, server.signatures, server.sealed_for(name))
        .seeds[VICTIM]
        for name in server.survivors
    }
    answer = silos.sides[VICTIM].answer(silos.terms(SIZE, step=1), values[VICTIM], 0.2)
    assert set(map(fingerprint_of, seeds.values())).isdisjoint(answer.confirmations.values())
    assert np.abs(opened(answer, seeds)).mean() > 1000


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([[0.5], [0.5], [0.0], [0.0], [0.0]], "2 holders, 3 are needed"),
        ([[0.6], [0.1], [0.1], [0.1], [0.1]], "0.60 of the weight, 0.5 is the most"),
        ([[0.2, 0.9], [0.2, 0.05], [0.2, 0.05], [0.2, 0.0], [0.2, 0.0]], "group 1: a silo has 0.90"),
        ([[-0.2], [0.4], [0.4], [0.2], [0.2]], "weights must be 0 to 1"),
        ([[1.2], [0.4], [0.4], [0.2], [0.2]], "weights must be 0 to 1"),
        ([[0.0, 0.2], *[[0.0, 0.2]] * 4], "group 0: 0 holders"),
    ],
)
def test_weights_that_would_show_an_answer_are_refused(silos: Silos, weights: list[list[float]], why: str) -> None:
    with pytest.raises(SumError, match=why):
        silos.sides[VICTIM].answer(silos.terms(SIZE, weights=weights), np.zeros(SIZE), 0.2)


def test_survivors_among_whom_a_class_has_too_few_holders_are_not_agreed_to() -> None:
    silos = Silos(7)
    weights = [[1 / 7, 1 / 3 if k < 3 else 0.0] for k in range(7)]
    terms = silos.terms(SIZE, weights=weights)
    for side in silos.sides.values():
        side.answer(terms, np.zeros(SIZE), 1 / 7)
    with pytest.raises(SumError, match="group 1: 2 holders, 3 are needed"):
        silos.sides["silo-05"].sign(terms, names_of(7)[1:])
    with pytest.raises(SumError, match="4 of 7 silos are left, 5 are needed"):
        silos.sides["silo-00"].sign(terms, names_of(4))


def test_a_silo_may_want_more_holders_but_not_fewer() -> None:
    terms = Silos(4).terms(SIZE)
    assert terms.threshold == 3
    strict, lax = Silos(4, least_holders=5), Silos(4, least_holders=1)
    with pytest.raises(SumError, match="4 holders, 5 are needed"):
        strict.sides[VICTIM].answer(strict.terms(SIZE), np.zeros(SIZE), 0.2)
    two = [[0.5], [0.5], [0.0], [0.0]]
    with pytest.raises(SumError, match="2 holders, 3 are needed"):
        lax.sides[VICTIM].answer(lax.terms(SIZE, weights=two), np.zeros(SIZE), 0.2)


@pytest.mark.parametrize("names", [("silo-00", "silo-01"), ("silo-00", "silo-00", "silo-01"), ("b", "a", "c")])
def test_terms_of_two_or_of_one_silo_twice_are_none(names: tuple[str, ...]) -> None:
    with pytest.raises(SumError, match=r"2 silos|not sorted"):
        Terms("run", 0, "a", "0" * 64, 1, names, ("0" * 64,) * len(names), ((0.3,),) * len(names))


class TestHostileSilos:
    """One silo can spoil a sum, and is named; it opens nothing."""

    def test_shares_that_it_changed_are_noticed(self, silos: Silos) -> None:
        terms = silos.terms(SIZE)
        server = silos.collect(terms, drawn_values(silos, SIZE))
        for name in server.survivors:
            said = silos.sides[name].reveal(terms, server.survivors, {}, server.sealed_for(name))
            if name == "silo-00":
                said = replace(said, shares={other: bytes(16) for other in said.shares})
            server.add_revealed(name, said)
        with pytest.raises(SumError, match="the shares of the self-mask of 'silo-00' do not fit"):
            server.total()

    def test_a_false_pair_seed_is_noticed(self, silos: Silos) -> None:
        terms = silos.terms(SIZE)
        server = silos.collect(terms, drawn_values(silos, SIZE), absent=[VICTIM])
        for name in server.survivors:
            server.add_signature(name, silos.sides[name].sign(terms, server.survivors))
        said = silos.sides["silo-00"].reveal(terms, server.survivors, server.signatures, server.sealed_for("silo-00"))
        with pytest.raises(SumError, match=f"the pair seed with '{VICTIM}' is not the one that was used"):
            server.add_revealed("silo-00", replace(said, seeds={VICTIM: bytes(32)}))

    @pytest.mark.parametrize(
        "change",
        [
            {"masked": np.zeros(SIZE + 1, np.uint32)},
            {"masked": np.zeros(SIZE)},
            {"sealed": {}},
            {"confirmations": {}},
            {"commitment": b""},
            {"sealed": dict.fromkeys(names_of(5), b"short")},
        ],
    )
    def test_answers_that_are_none_are_refused(self, silos: Silos, change: dict[str, object]) -> None:
        terms = silos.terms(SIZE)
        good = silos.sides[VICTIM].answer(terms, np.zeros(SIZE), 0.2)
        server = silos.server(terms)
        with pytest.raises(SumError):
            server.add_answer(VICTIM, replace(good, **change))  # type: ignore[arg-type]
        server.add_answer(VICTIM, good)
        with pytest.raises(SumError, match="nobody waits for"):
            server.add_answer(VICTIM, good)

    def test_a_signature_of_another_list_does_not_count(self, silos: Silos) -> None:
        terms = silos.terms(SIZE)
        server = silos.collect(terms, drawn_values(silos, SIZE), absent=[VICTIM])
        with pytest.raises(SumError, match="the signature under the list of survivors is false"):
            server.add_signature("silo-00", silos.sides["silo-00"].sign(terms, terms.participants))
