"""A silo's part in a secure sum: it answers masked, agrees to one list of survivors, and reveals by that list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsynth.config.types import LEAST_SILOS
from fedsynth.privacy.sums import masks
from fedsynth.privacy.sums.fixed_point import to_fixed
from fedsynth.privacy.sums.keys import PublicKeys, SecretKeys
from fedsynth.privacy.sums.terms import SumError, Terms, shown


@dataclass(frozen=True)
class MaskedAnswer:
    """What a silo answers.

    Attributes:
        masked: its weighted numbers under its masks, uint32 (size,).
        sealed: shares of its self-mask's seed, sealed for every participant, by name; one for itself, too.
        commitment: by which the seed is recognised when it has been put together.
        confirmations: by which the pair seed with every other participant is recognised; where the two differ, one has
            another key or was asked something else.
    """

    masked: NDArray[np.uint32]
    sealed: Mapping[str, bytes]
    commitment: bytes
    confirmations: Mapping[str, bytes]


@dataclass(frozen=True)
class Revealed:
    """What a survivor reveals, of every participant one of the two.

    Attributes:
        shares: its shares of the survivors' self-masks, by name.
        seeds: its pair seeds of this sum with those who dropped out, by name.
    """

    shares: Mapping[str, bytes]
    seeds: Mapping[str, bytes]


@dataclass(frozen=True)
class Memory:
    """What a silo must not forget of a run: it is on its disk before the answer leaves.

    Attributes:
        step: the last step that it answered.
        question: what that step is about.
        attempts: attempts at it that it answered, by their terms' digest.
        agreed: the one list of survivors that it signed or revealed by; None: none yet.
        within: the list that was agreed to at an earlier step, which later ones keep within; None: none yet. The
            difference of two sums, with and without a silo, is that silo's answer: so it leaves once and for all.
    """

    step: int = -1
    question: str = ""
    attempts: tuple[str, ...] = ()
    agreed: tuple[str, ...] | None = None
    within: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is not what that wrote.
        """
        agreed, within = (None if known[key] is None else tuple(known[key]) for key in ("agreed", "within"))
        return cls(int(known["step"]), str(known["question"]), tuple(map(str, known["attempts"])), agreed, within)


class SiloSide:
    """One silo in the sums of one run.

    Args:
        name: the silo's.
        keys: its own.
        pinned: the public keys of the silos that it knows, by name, from a file of its own and never from the server.
        memory: of the run so far.
        least_holders: silos with a weight in every group, at least; below 3 counts as 3.

    Attributes:
        memory: to be stored before what a method returned is sent.
    """

    def __init__(
        self,
        name: str,
        keys: SecretKeys,
        pinned: Mapping[str, PublicKeys],
        memory: Memory | None = None,
        least_holders: int = LEAST_SILOS,
    ) -> None:
        self._name, self._keys, self._pinned = name, keys, pinned
        self._least_holders = max(least_holders, LEAST_SILOS)
        self.memory = memory or Memory()

    def check(self, terms: Terms) -> None:
        """Refuse terms under which an answer would not be hidden, or that go back in the run.

        Raises:
            SumError: says why; a substituted key by the name of its silo.
        """
        if self._name not in terms.participants:
            raise SumError(f"'{shown([self._name])}' is not among those whose answers are summed")
        for name, fingerprint in zip(terms.participants, terms.fingerprints, strict=True):
            known = self._keys.public if name == self._name else self._pinned.get(name)
            if known is None:
                raise SumError(f"no key of '{shown([name])}' is known here: exchange the file of keys anew")
            if known.fingerprint != fingerprint:
                raise SumError(f"the key of '{shown([name])}' is not the one that is known here")
        terms.check(terms.participants, self._least_holders)
        memory = self.memory
        within = self._within(terms)
        if back := set(terms.participants).difference(within or terms.participants):
            raise SumError(f"'{shown(sorted(back))}' has left the sums of this run, and cannot come back")
        if terms.step < memory.step:
            raise SumError(f"step {terms.step} after step {memory.step}: steps must rise")
        if terms.step == memory.step and terms.question != memory.question:
            raise SumError(f"step {terms.step} was asked before, about something else")
        if terms.digest in memory.attempts:
            raise SumError(f"step {terms.step}: this attempt was answered before")

    def answer(
        self, terms: Terms, values: NDArray[np.floating], weights: NDArray[np.floating] | float = 1.0
    ) -> MaskedAnswer:
        """Return the weighted numbers under this sum's masks.

        Args:
            terms: what is summed.
            values: ``terms.size`` numbers, of any shape; clamped, see :mod:`fedsynth.privacy.sums.fixed_point`.
            weights: this silo's, of a shape that broadcasts to theirs.

        Raises:
            SumError: as :meth:`check`, or the values cannot be summed.
        """
        self.check(terms)
        return self.mask(terms, to_fixed(values, weights).ravel())

    def mask(self, terms: Terms, numbers: NDArray[np.uint32]) -> MaskedAnswer:
        """Return numbers modulo 2³² under this sum's masks; what they stand for is the caller's.

        Args:
            terms: what is summed.
            numbers: uint32 (``terms.size``,), already weighted.

        Raises:
            SumError: as :meth:`check`, or they are another number of numbers.
        """
        self.check(terms)
        masked = numbers.copy()
        if masked.dtype != np.uint32 or masked.shape != (terms.size,):
            raise SumError(f"{masked.size} numbers, {masked.dtype}, for a sum of {terms.size}, uint32")
        own = masks.new_seed()
        masked += masks.mask(own, terms.size)
        confirmations: dict[str, bytes] = {}
        for name in self._others(terms):
            seed = self._pair_seed(terms, name)
            confirmations[name] = masks.fingerprint_of(seed)
            add_mask(masked, seed, positive=self._name < name)
        shares = masks.share(own, terms.participants, terms.threshold)
        sealed = {name: masks.seal(self._share_key(terms, self._name, name), part) for name, part in shares.items()}
        again = terms.step == self.memory.step
        known = self.memory
        if not again:
            known = Memory(terms.step, terms.question, within=self._within(terms))
        self.memory = replace(known, attempts=(*known.attempts, terms.digest))
        return MaskedAnswer(masked, sealed, masks.fingerprint_of(own), confirmations)

    def sign(self, terms: Terms, survivors: Sequence[str]) -> bytes:
        """Agree to a list of survivors, and to no other at this step.

        Raises:
            SumError: this silo has agreed to another list, did not answer, or a sum over these would show an answer.
        """
        self._check_list(terms, survivors)
        self.memory = replace(self.memory, agreed=tuple(survivors))
        return self._keys.sign(list_text(terms, survivors))

    def reveal(
        self,
        terms: Terms,
        survivors: Sequence[str],
        signatures: Mapping[str, bytes],
        sealed: Mapping[str, bytes],
    ) -> Revealed:
        """Reveal shares of the survivors' self-masks, and pair seeds with those who dropped out.

        Args:
            terms: what is summed.
            survivors: the list, sorted.
            signatures: under it, of ``terms.threshold`` survivors at least; none are needed where nobody dropped out.
            sealed: what every survivor sealed for this silo.

        Raises:
            SumError: as :meth:`sign`, signatures are missing or false, or a sealed share was changed.
        """
        self._check_list(terms, survivors)
        if tuple(survivors) != terms.participants:
            text = list_text(terms, survivors)
            good = [name for name in survivors if self._has_signed(terms, name, signatures.get(name, b""), text)]
            if len(good) < terms.threshold:
                raise SumError(f"{len(good)} silos have signed the list of survivors, {terms.threshold} are needed")
        shares: dict[str, bytes] = {}
        for name in survivors:
            key = self._share_key(terms, name, self._name)
            share = masks.unseal(key, sealed.get(name, b""))
            if share is None or len(share) != masks.SHARED_BYTES:
                raise SumError(f"the share of '{shown([name])}' was changed, or that silo was asked something else")
            shares[name] = share
        self.memory = replace(self.memory, agreed=tuple(survivors))
        dropped = [name for name in terms.participants if name not in shares]
        return Revealed(shares, {name: self._pair_seed(terms, name) for name in dropped})

    def _within(self, terms: Terms) -> tuple[str, ...] | None:
        """Return the list that the terms' participants must keep within; None: none yet."""
        memory = self.memory
        return memory.within if terms.step == memory.step else memory.agreed or memory.within

    def _check_list(self, terms: Terms, survivors: Sequence[str]) -> None:
        if terms.digest not in self.memory.attempts:
            raise SumError("a sum that this silo did not answer")
        if self._name not in survivors:
            raise SumError(f"'{shown([self._name])}' is not among the survivors")
        terms.check(survivors, self._least_holders)
        if self.memory.agreed not in (None, tuple(survivors)):
            raise SumError(f"step {terms.step}: this silo has agreed to another list of survivors")

    def _has_signed(self, terms: Terms, name: str, signature: bytes, text: bytes) -> bool:
        return name in terms.participants and self._public(name).has_signed(signature, text)

    def _public(self, name: str) -> PublicKeys:
        return self._keys.public if name == self._name else self._pinned[name]

    def _others(self, terms: Terms) -> list[str]:
        return [name for name in terms.participants if name != self._name]

    def _pair_seed(self, terms: Terms, name: str) -> bytes:
        return self._keys.derive(self._pinned[name], "pair", terms.digest)

    def _share_key(self, terms: Terms, giver: str, taker: str) -> bytes:
        other = taker if giver == self._name else giver
        return self._keys.derive(self._public(other), "share", giver, taker, terms.digest)


def add_mask(numbers: NDArray[np.uint32], seed: bytes, positive: bool) -> None:
    """Add a mask to numbers in place, or take it away, modulo 2³²."""
    mask = masks.mask(seed, len(numbers))
    if positive:
        numbers += mask
    else:
        numbers -= mask


def list_text(terms: Terms, survivors: Sequence[str]) -> bytes:
    """Return what silos sign when they agree to a list of survivors."""
    return json.dumps(["fedsynth secure sum 1 survivors", terms.digest, list(survivors)]).encode()
