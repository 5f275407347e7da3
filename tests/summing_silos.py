"""Silos and a server in one secure sum, as tests drive them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedsynth.privacy.sums import Memory, SecretKeys, ServerSide, SiloSide, Terms


def names_of(count: int) -> list[str]:
    return [f"silo-{k:02d}" for k in range(count)]


@dataclass
class Silos:
    """``count`` silos that know one another's keys, in one run."""

    count: int
    least_holders: int = 3
    keys: dict[str, SecretKeys] = field(init=False)
    sides: dict[str, SiloSide] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = {name: SecretKeys.generate() for name in names_of(self.count)}
        self.sides = {name: self.side(name) for name in self.keys}

    def side(self, name: str, memory: Memory | None = None) -> SiloSide:
        pinned = {other: keys.public for other, keys in self.keys.items() if other != name}
        return SiloSide(name, self.keys[name], pinned, memory, self.least_holders)

    def terms(
        self,
        size: int,
        step: int = 0,
        attempt: str = "first",
        asked: str = "x",
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Terms:
        names = tuple(self.keys)
        return Terms(
            run="run",
            step=step,
            attempt=attempt,
            content=sha256(asked.encode()).hexdigest(),
            size=size,
            participants=names,
            fingerprints=tuple(keys.public.fingerprint for keys in self.keys.values()),
            weights=tuple(map(tuple, weights)) if weights else tuple((1 / self.count,) for _ in names),
        )

    def server(self, terms: Terms) -> ServerSide:
        return ServerSide(terms, {name: keys.public for name, keys in self.keys.items()}, self.least_holders)

    def collect(
        self, terms: Terms, values: Mapping[str, NDArray[np.float64]], absent: Collection[str] = ()
    ) -> ServerSide:
        """Have everybody but ``absent`` answer, and close the list."""
        server = self.server(terms)
        for name, side in self.sides.items():
            if name not in absent:
                server.add_answer(name, side.answer(terms, values[name], terms.row(name)[0]))
        server.close()
        return server

    def reveal(self, terms: Terms, server: ServerSide, silent: Collection[str] = ()) -> None:
        """Have the survivors sign where somebody dropped out, and all but ``silent`` reveal."""
        if server.dropped:
            for name in server.survivors:
                server.add_signature(name, self.sides[name].sign(terms, server.survivors))
        for name in server.survivors:
            if name not in silent:
                sealed = server.sealed_for(name)
                server.add_revealed(name, self.sides[name].reveal(terms, server.survivors, server.signatures, sealed))


def drawn_values(silos: Silos, size: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {name: 3 * rng.standard_normal(size) for name in silos.keys}


def weighted(terms: Terms, values: Mapping[str, NDArray[np.float64]], over: Collection[str]) -> NDArray[np.float64]:
    return np.sum([terms.row(name)[0] * values[name] for name in over], axis=0)
