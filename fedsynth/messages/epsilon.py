"""``query.epsilon``: noise predictions of the silo's own model, the one question of cooperative inference.

What the server makes of the answers: :mod:`strategies.cooperation` and :mod:`fedsynth.mixture`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedsynth.messages.envelope import Answer, Reader, Reply, Request
from fedsynth.messages.fields import (
    ENVELOPE,
    KEYS,
    MAX_CLASSES,
    MAX_STEPS,
    MessageError,
    array,
    setting,
    several,
    tensor,
    text,
    whole,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class EpsilonAnswer(Answer):
    """Noise predictions.

    Attributes:
        epsilon: float32 (n, C, H, W); may share the message's memory and must not be written to.
        counts: the silo's images by class as it tells them, int64 (Y,), where silos aggregate.
        statement: its signed word on predictions, counts and question, where silos aggregate.
        rows: what the question said of itself, see :class:`EpsilonRequest`; it does not travel.
        wire_dtype: precision on the wire.
    """

    epsilon: torch.Tensor = tensor(array(4), "epsilon", view=True)
    counts: torch.Tensor | None = tensor(array(1, torch.int64, low=0), "counts", default=None)
    statement: str | None = setting(ENVELOPE, None)
    rows: torch.Tensor | None = None
    wire_dtype: str = "float32"


@dataclass(frozen=True, kw_only=True, eq=False)
class EpsilonRequest(Request[EpsilonAnswer]):
    """Noisy samples, all at one timestep or each at its own.

    Attributes:
        samples: x_t, float32 (n, C, H, W).
        labels: their classes, int64 (n,).
        timestep: of all samples; None: ``timesteps`` has one for each.
        timesteps: int64 (n,).
        server_round: for the silo's log.
        holders: silos that hold images of every class, as the server says.
        rows: indices (n,) that the server needs to place the answer, which gets them back; they do not travel.
        wire_dtype: precision on the wire.
        run_token: names the run, where silos aggregate (:mod:`fedsynth.replicas`).
        base: content id of the level before, from which the samples follow, where silos aggregate.
        keys: the public keys of all silos, as text, where silos aggregate.
        certificates: of the rounds since the last that the silo has heard of, oldest first.
    """

    kind: ClassVar[str] = "query.epsilon"

    samples: torch.Tensor = tensor(array(4))
    labels: torch.Tensor = tensor(array(1, torch.int64, low=0))
    timestep: int | None = setting(whole(0, MAX_STEPS), None)
    timesteps: torch.Tensor | None = tensor(array(1, torch.int64, low=0), default=None)
    server_round: int | None = setting(whole(1, MAX_STEPS), None)
    rows: torch.Tensor | None = None
    wire_dtype: str = "float32"
    holders: tuple[int, ...] | None = setting(several(whole(), MAX_CLASSES), None)
    run_token: str | None = setting(text(r"[A-Za-z0-9_-]{1,64}"), None)
    base: str | None = setting(text(r"[0-9a-f]{64}"), None)
    keys: str | None = setting(KEYS, None)
    certificates: tuple[str, ...] | None = setting(several(ENVELOPE), None)

    def check(self) -> None:
        """Compare the lengths, and ask for timesteps in one of the two ways."""
        if len(self.labels) != len(self.samples):
            raise MessageError(f"{len(self.samples)} samples with {len(self.labels)} labels")
        if (self.timestep is None) == (self.timesteps is None):
            raise MessageError("must have either a timestep or timesteps")
        if self.timesteps is not None and len(self.timesteps) != len(self.samples):
            raise MessageError(f"{len(self.samples)} samples with {len(self.timesteps)} timesteps")

    def reader(self) -> Reader[EpsilonAnswer]:
        """Read the answer; it must be of the samples' shape."""
        expected = tuple(self.samples.shape)
        rows = self.rows

        def read(reply: Reply) -> EpsilonAnswer:
            answer = EpsilonAnswer.from_message(reply)
            if answer.epsilon.shape != expected:
                raise MessageError(f"answer has shape {tuple(answer.epsilon.shape)}, not {expected}")
            return replace(answer, rows=rows)

        return read
