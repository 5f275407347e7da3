"""The server's part in a secure sum: it collects, says who is left, and removes the masks from the sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedsynth.config.types import LEAST_SILOS
from fedsynth.privacy.sums import masks
from fedsynth.privacy.sums.fixed_point import to_float
from fedsynth.privacy.sums.keys import PublicKeys
from fedsynth.privacy.sums.silo import MaskedAnswer, Revealed, add_mask, list_text
from fedsynth.privacy.sums.terms import SumError, Terms, shown

_SEALED_BYTES = 44
_FINGERPRINT_BYTES = 32


class ServerSide:
    """One secure sum.

    Args:
        terms: what is summed.
        keys: the participants' public keys, by name.
        least_holders: silos with a weight in every group, at least; silos may want more.

    Attributes:
        survivors: those whose answers are summed, sorted; empty until :meth:`close`.
    """

    def __init__(self, terms: Terms, keys: Mapping[str, PublicKeys], least_holders: int = LEAST_SILOS) -> None:
        self._terms, self._keys, self._least_holders = terms, keys, least_holders
        self._answers: dict[str, MaskedAnswer] = {}
        self._signatures: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}
        self.survivors: tuple[str, ...] = ()

    def add_answer(self, name: str, answer: MaskedAnswer) -> None:
        """Keep a silo's answer.

        Raises:
            SumError: it cannot be one to these terms, or comes too late.
        """
        everybody = set(self._terms.participants)
        if name not in everybody or name in self._answers or self.survivors:
            raise SumError("an answer that nobody waits for")
        if answer.masked.dtype != np.uint32 or answer.masked.shape != (self._terms.size,):
            found = f"{answer.masked.dtype} {answer.masked.shape}"
            raise SumError(f"masked numbers are {found}, not uint32 ({self._terms.size},)")
        if set(answer.sealed) != everybody or set(answer.confirmations) != everybody - {name}:
            raise SumError("shares or confirmations are not those of the participants")
        _check_lengths(answer.sealed, _SEALED_BYTES, "a sealed share")
        _check_lengths({name: answer.commitment, **answer.confirmations}, _FINGERPRINT_BYTES, "a confirmation")
        self._answers[name] = answer

    def close(self) -> dict[str, str]:
        """Settle who survives: whoever answered, without silos whose pair seeds differ from the others'.

        Returns:
            Why a silo that answered is left out, by name.

        Raises:
            SumError: too few are left, or a sum over them would show an answer.
        """
        left_out: dict[str, str] = {}
        while pairs := self._contradictions(set(self._answers) - set(left_out)):
            counts = Counter(name for pair in pairs for name in pair)
            worst = max(counts, key=lambda name: (counts[name], name))
            others = sorted({name for pair in pairs if worst in pair for name in pair} - {worst})
            left_out[worst] = f"has another key or was asked something else than {shown(others)}"
        survivors = tuple(sorted(set(self._answers) - set(left_out)))
        self._terms.check(survivors, self._least_holders)
        self.survivors = survivors
        return left_out

    @property
    def dropped(self) -> tuple[str, ...]:
        """Participants who do not survive."""
        return tuple(name for name in self._terms.participants if name not in self.survivors)

    def add_signature(self, name: str, signature: bytes) -> None:
        """Keep a survivor's signature under the list.

        Raises:
            SumError: it is not that.
        """
        if name not in self.survivors:
            raise SumError("a signature of somebody who does not survive")
        if not self._keys[name].has_signed(signature, list_text(self._terms, self.survivors)):
            raise SumError("the signature under the list of survivors is false")
        self._signatures[name] = signature

    @property
    def signatures(self) -> dict[str, bytes]:
        """Signatures under the list, by name; survivors want ``terms.threshold`` of them if anybody has dropped out."""
        return dict(self._signatures)

    def sealed_for(self, name: str) -> dict[str, bytes]:
        """Return what the survivors sealed for one of them."""
        return {giver: self._answers[giver].sealed[name] for giver in self.survivors}

    def add_revealed(self, name: str, revealed: Revealed) -> None:
        """Keep what a survivor revealed.

        Raises:
            SumError: it is not what was asked for, or pair seeds are not those it confirmed.
        """
        if name not in self.survivors:
            raise SumError("somebody who does not survive reveals something")
        if set(revealed.shares) != set(self.survivors) or set(revealed.seeds) != set(self.dropped):
            raise SumError("what is revealed is not about the survivors and the others")
        _check_lengths(revealed.shares, masks.SHARED_BYTES, "a share")
        for other, seed in revealed.seeds.items():
            if masks.fingerprint_of(seed) != self._answers[name].confirmations[other]:
                raise SumError(f"the pair seed with '{shown([other])}' is not the one that was used")
        self._revealed[name] = revealed

    @property
    def still_needed(self) -> tuple[str, ...]:
        """Survivors who must still reveal something before :meth:`total`; any of them will do where nobody dropped out.

        Asking a silo again is safe: it reveals the same.
        """
        silent = tuple(name for name in self.survivors if name not in self._revealed)
        enough = len(self._revealed) >= self._terms.threshold
        return silent if self.dropped or not enough else ()

    def total(self) -> NDArray[np.float64]:
        """Return the sum of what survivors gave to :meth:`SiloSide.answer` (size,), off by 2⁻¹⁷ a silo at most.

        Raises:
            SumError: as :meth:`numbers`.
        """
        return to_float(self.numbers())

    def numbers(self) -> NDArray[np.uint32]:
        """Return the sum of the survivors' numbers (size,), modulo 2³².

        Raises:
            SumError: too few have revealed, or a share does not fit.
        """
        if not self.survivors or self.still_needed:
            raise SumError(f"{shown(self.still_needed) or 'nobody'} must reveal first")
        total = np.zeros(self._terms.size, np.uint32)
        names = self._terms.participants
        for name in self.survivors:
            total += self._answers[name].masked
            shares = {giver: revealed.shares[name] for giver, revealed in self._revealed.items()}
            seed = masks.combine(shares, names, self._terms.threshold)
            if masks.fingerprint_of(seed) != self._answers[name].commitment:
                raise SumError(f"the shares of the self-mask of '{shown([name])}' do not fit")
            add_mask(total, seed, positive=False)
        for name, revealed in self._revealed.items():
            for other, seed in revealed.seeds.items():
                add_mask(total, seed, positive=other < name)
        return total

    def _contradictions(self, names: set[str]) -> list[tuple[str, str]]:
        """Return pairs of silos that do not have the same pair seed."""
        found = self._answers
        return [
            (one, other)
            for one in sorted(names)
            for other in sorted(names)
            if one < other and found[one].confirmations[other] != found[other].confirmations[one]
        ]


def _check_lengths(values: Mapping[str, bytes], length: int, what: str) -> None:
    for value in values.values():
        if not isinstance(value, bytes) or len(value) != length:
            raise SumError(f"{what} that is not {length} bytes long")
