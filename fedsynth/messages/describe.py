"""``query.describe``: what a real silo's images look like, or that a node aggregates, before anything is agreed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsynth.messages.envelope import Answer, Reader, Request
from fedsynth.messages.fields import MessageError, image_spec, setting, text
from fedsynth.policy.policy import LONGEST_TOLD
from fedsynth.roles import AGGREGATOR, SILO
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class DescribeAnswer(Answer):
    """The silo's own format.

    Attributes:
        spec: channels and size of its images, and the classes it holds: none where all are unlabelled.
        policy: the public lines of its policy as JSON, see :meth:`fedsynth.policy.SiloPolicy.from_public`.
        role: ``aggregator`` of a node that holds no images, of whose format nothing counts.
        sum_keys: the public keys of an aggregator, 128 hexadecimal digits.
    """

    introduces: ClassVar[bool] = True

    spec: ImageSpec = image_spec(fewest_classes=0)
    policy: str = setting(text(rf"\{{[ -~]{{0,{LONGEST_TOLD}}}\}}"), "{}")
    role: str = setting(text(f"{SILO}|{AGGREGATOR}"), SILO)
    sum_keys: str | None = setting(text(r"[0-9a-f]{128}"), None)

    def check(self) -> None:
        """Ask an aggregator for its keys."""
        if self.role == AGGREGATOR and self.sum_keys is None:
            raise MessageError(
                "an aggregator without keys: 'fedsynth silo init' and 'fedsynth link keys' make them, and"
                " 'fedsynth silo start' finds them in its folder"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class DescribeRequest(Request[DescribeAnswer]):
    """Asks for nothing but that."""

    introduces: ClassVar[bool] = True
    kind: ClassVar[str] = "query.describe"

    def reader(self) -> Reader[DescribeAnswer]:
        """Read the answer by itself."""
        return DescribeAnswer.from_message
