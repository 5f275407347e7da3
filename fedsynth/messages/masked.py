"""``query.masked``, ``query.agree``, ``query.reveal``: secure sums, of noise predictions and of whatever else is asked.

What they mean, and what a silo refuses: :mod:`fedsynth.privacy.sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, ClassVar

import torch

from fedsynth.config.types import LEAST_SILOS, MOST_SILOS
from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import MAX_STEPS, MessageError, array, setting, several, shown, tensor, text, whole

TOKEN = text(r"[A-Za-z0-9_-]{1,64}")
_NAMES = several(text(r".{1,64}"), MOST_SILOS)


def blob(length: int) -> Callable[[str, Any], bytes]:
    """Bytes of a certain length."""

    def check(key: str, value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise MessageError(f"{key} = {shown(value)}: must be {length} bytes")
        return value

    return check


_SEALED = several(blob(44), MOST_SILOS)
_FINGERPRINTS = several(blob(32), MOST_SILOS)


def _check_survivors(survivors: tuple[str, ...]) -> None:
    if len(survivors) < LEAST_SILOS:
        raise MessageError(f"{len(survivors)} survivors: must be {LEAST_SILOS} at least")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedAnswer(Answer):
    """Weighted numbers under masks.

    Attributes:
        masked: whole numbers modulo 2³², as int32 (m,).
        sealed: shares of the self-mask's seed, in the order of the participants.
        commitment: of that seed.
        confirmations: of the pair seeds with the other participants, in their order.
    """

    masked: torch.Tensor = tensor(array(1, torch.int32), "masked")
    sealed: tuple[bytes, ...] = setting(_SEALED)
    commitment: bytes = setting(blob(32))
    confirmations: tuple[bytes, ...] = setting(_FINGERPRINTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class SumRequest(Request[MaskedAnswer]):
    """A question whose answers are summed, and all that a silo must know to check it and to mask its answer.

    Whatever else a kind of question says, every silo is told the same: it is bound into the masks by :meth:`content`.

    Attributes:
        run_token: names the run, the same when it is resumed.
        attempt: names this attempt.
        participants: names of the silos whose answers are summed, sorted.
        keys: their public keys, 128 hexadecimal digits each.
        weights: theirs in every group of numbers, such as a class, float32 (K, G).
    """

    run_token: str = setting(TOKEN)
    attempt: str = setting(TOKEN)
    participants: tuple[str, ...] = setting(_NAMES)
    keys: tuple[str, ...] = setting(several(text(r"[0-9a-f]{128}"), MOST_SILOS))
    weights: torch.Tensor = tensor(array(2, torch.float32, low=0), "weights")

    @property
    def size(self) -> int:
        """Numbers in an answer."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        """Groups in which silos have weights."""
        return 1

    def content(self) -> str:
        """Return the SHA-256, as hexadecimal digits, of everything that is asked besides who takes part, and how."""
        return self.digest({info.name for info in fields(SumRequest)})

    def check(self) -> None:
        """Compare the lengths."""
        if len(self.keys) != len(self.participants):
            raise MessageError(f"{len(self.participants)} participants with {len(self.keys)} keys")
        expected = len(self.participants), self.groups
        if tuple(self.weights.shape) != expected:
            raise MessageError(f"weights have shape {tuple(self.weights.shape)}, not {expected}")

    def reader(self) -> Reader[MaskedAnswer]:
        """Read the answer; it must have as many numbers as are asked for."""
        expected, silos = self.size, len(self.participants)

        def read(reply: Reply) -> MaskedAnswer:
            answer = MaskedAnswer.from_message(reply)
            if len(answer.masked) != expected:
                raise MessageError(f"{len(answer.masked)} masked numbers, not {expected}")
            if (len(answer.sealed), len(answer.confirmations)) != (silos, silos - 1):
                raise MessageError(f"{len(answer.sealed)} shares, {len(answer.confirmations)} seeds of {silos} silos")
            return answer

        return read


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedRequest(SumRequest):
    """Noisy samples at one timestep, for a sum of noise predictions.

    Attributes:
        samples: x_t, float32 (n, C, H, W).
        labels: their classes, int64 (n,); these are the groups.
        timestep: of all samples.
        part: which of the messages about this timestep.
        server_round: for the silo's log.
        wire_dtype: precision on the wire.
    """

    kind: ClassVar[str] = "query.masked"

    samples: torch.Tensor = tensor(array(4))
    labels: torch.Tensor = tensor(array(1, torch.int64, low=0))
    timestep: int = setting(whole(0, MAX_STEPS))
    part: int = setting(whole(0, MAX_STEPS), 0)
    server_round: int | None = setting(whole(1, MAX_STEPS), None)
    wire_dtype: str = "float32"

    @property
    def size(self) -> int:
        """One for every number of the samples."""
        return self.samples.numel()

    @property
    def groups(self) -> int:
        """Classes."""
        return len(self.labels.unique())

    def content(self) -> str:
        """Return the SHA-256 of samples, labels and timestep."""
        classes = self.labels.unique().tolist()
        asked = sha256(f"{self.timestep} {self.part} {tuple(self.samples.shape)} {classes} ".encode())
        asked.update(self.samples.detach().cpu().contiguous().float().numpy().tobytes())
        asked.update(self.labels.cpu().contiguous().numpy().tobytes())
        return asked.hexdigest()

    def check(self) -> None:
        """Compare the lengths."""
        if len(self.labels) != len(self.samples) or not len(self.samples):
            raise MessageError(f"{len(self.samples)} samples with {len(self.labels)} labels")
        super().check()


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreeAnswer(Answer):
    """A signature under the list of survivors."""

    signature: bytes = setting(blob(64))


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreeRequest(Request[AgreeAnswer]):
    """Asks to agree to a list of survivors.

    Attributes:
        run_token, attempt: of the sum.
        survivors: names, sorted.
    """

    kind: ClassVar[str] = "query.agree"

    run_token: str = setting(TOKEN)
    attempt: str = setting(TOKEN)
    survivors: tuple[str, ...] = setting(_NAMES)

    def check(self) -> None:
        """Refuse a list of hardly anybody."""
        _check_survivors(self.survivors)

    def reader(self) -> Reader[AgreeAnswer]:
        """Read the answer."""
        return AgreeAnswer.from_message


@dataclass(frozen=True, kw_only=True, eq=False)
class RevealAnswer(Answer):
    """What removes the masks from the sum.

    Attributes:
        shares: of the survivors' self-masks, in their order.
        seeds: pair seeds with those who dropped out, in their order.
    """

    shares: tuple[bytes, ...] = setting(several(blob(16), MOST_SILOS))
    seeds: tuple[bytes, ...] = setting(_FINGERPRINTS, ())


@dataclass(frozen=True, kw_only=True, eq=False)
class RevealRequest(Request[RevealAnswer]):
    """Asks for what removes the masks from the sum.

    Attributes:
        run_token, attempt: of the sum.
        survivors: names, sorted.
        signers: survivors who have signed the list; nobody need where nobody dropped out.
        signatures: theirs, in that order.
        sealed: shares that the survivors sealed for the silo that is asked, in their order.
    """

    kind: ClassVar[str] = "query.reveal"

    run_token: str = setting(TOKEN)
    attempt: str = setting(TOKEN)
    survivors: tuple[str, ...] = setting(_NAMES)
    signers: tuple[str, ...] = setting(_NAMES, ())
    signatures: tuple[bytes, ...] = setting(several(blob(64), MOST_SILOS), ())
    sealed: tuple[bytes, ...] = setting(_SEALED)

    def check(self) -> None:
        """Compare the lengths."""
        _check_survivors(self.survivors)
        if len(self.sealed) != len(self.survivors):
            raise MessageError(f"{len(self.sealed)} shares in sealed of {len(self.survivors)} survivors")
        if len(self.signers) != len(self.signatures):
            raise MessageError(f"{len(self.signers)} signers with {len(self.signatures)} signatures")

    def reader(self) -> Reader[RevealAnswer]:
        """Read the answer; it must be about all survivors."""
        survivors = len(self.survivors)

        def read(reply: Reply) -> RevealAnswer:
            answer = RevealAnswer.from_message(reply)
            if len(answer.shares) != survivors:
                raise MessageError(f"{len(answer.shares)} shares of {survivors} survivors")
            return answer

        return read
