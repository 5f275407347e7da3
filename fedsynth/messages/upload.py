"""``query.upload``: the weights of a silo's own model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsynth.messages.envelope import Answer, Reader, Request
from fedsynth.messages.fields import array_record, image_spec
from fedsynth.messages.transport import Arrays
from fedsynth.spec import ImageSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class UploadAnswer(Answer):
    """The model.

    Attributes:
        arrays: weights by state dict name; whoever knows the model checks them.
    """

    arrays: Arrays = array_record()


@dataclass(frozen=True, kw_only=True, eq=False)
class UploadRequest(Request[UploadAnswer]):
    """Asks for it.

    Attributes:
        spec: format and classes of the run.
    """

    kind: ClassVar[str] = "query.upload"

    spec: ImageSpec = image_spec()

    def reader(self) -> Reader[UploadAnswer]:
        """Read the answer by itself."""
        return UploadAnswer.from_message
