"""Secure sums: a server learns the weighted sum of the silos' answers, and no answer by itself.

Double masking after Bonawitz et al. 2017 (Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS),
with two changes. Pair masks come from long-term identity keys that the silos pin, by way of a key that is derived anew
for every question, so that a drop-out opens that question's masks and no secret that outlives it. And a list of
survivors that misses nobody needs no signatures, which saves an exchange of messages where nobody drops out.

1. The server sends every silo the same :class:`Terms`. A silo checks them and answers with its masked vector and with
   shares of the seed of its self-mask, sealed for each silo (:meth:`SiloSide.answer`).
2. If silos dropped out, the server has the others sign the list of survivors (:meth:`SiloSide.sign`).
3. The survivors reveal shares of the survivors' self-masks and their pair seeds with those who dropped out, never both
   of one silo (:meth:`SiloSide.reveal`); the server removes the masks (:meth:`ServerSide.total`).

With K participants and the threshold t = ⌊2K/3⌋ + 1, at most K - t silos may drop out, and nothing but one sum over at
least t silos is opened while fewer than 2t - K of them help a server that lies. Colluders know their own answers: what
is hidden is the sum of the others.

No file, no clock, no message here. Whoever calls stores :class:`Memory` before an answer leaves.
"""

from fedsynth.privacy.sums.fixed_point import from_ring, to_ring
from fedsynth.privacy.sums.keys import PublicKeys, SecretKeys
from fedsynth.privacy.sums.server import ServerSide
from fedsynth.privacy.sums.silo import MaskedAnswer, Memory, Revealed, SiloSide
from fedsynth.privacy.sums.terms import SumError, Terms, check_weights, sum_terms, threshold

__all__ = [
    "MaskedAnswer",
    "Memory",
    "PublicKeys",
    "Revealed",
    "SecretKeys",
    "ServerSide",
    "SiloSide",
    "SumError",
    "Terms",
    "check_weights",
    "from_ring",
    "sum_terms",
    "threshold",
    "to_ring",
]
