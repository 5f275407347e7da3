"""How the fields of a message are declared: where a value travels, and what it must be when it is read.

A message is a frozen dataclass. A field made here says in which record of the message its value stands, under the
field's own name in kebab-case, and which check it must pass; ``None`` is not sent. Whoever holds a message that was
read can rely on types, ranges, dimensions and finite numbers; what depends on the question, such as a shape, the
request's reader checks, and a state dict is checked by whoever knows the model.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch

from fedsynth.errors import UserError
from fedsynth.spec import MAX_CLASSES as MAX_CLASSES
from fedsynth.spec import MAX_NAME_LENGTH, ImageSpec
from fedsynth.text import printable

Check = Callable[[str, Any], Any]
"""From a key and its value to the value to use; raises :class:`MessageError`."""

MAX_SIZE = 4096
"""Side of an image in pixels."""
LARGEST_WHOLE = 10**12
"""Images that anybody can claim to hold, among others: sums over silos stay exact. Runs have ``max-silo-images``."""
MAX_STEPS = 10**9
MAX_SECONDS = 1e9
"""Some thirty years."""
MAX_LOSS = 1e12
"""Size of a loss that is still a measurement; predicting no noise has a loss of 1."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


class MessageError(UserError):
    """A message that cannot be used: names the field, its value and what it must be, in one printable line."""

    def __init__(self, text: object) -> None:
        super().__init__(printable(text))


class Place(Enum):
    """Where a field travels."""

    CONFIG = "config"
    METRICS = "metrics"
    TENSOR = "one array of an array record"
    RECORD = "a whole array record"
    SPEC = "three keys of config"


@dataclass(frozen=True)
class Travels:
    """How a field travels.

    Attributes:
        place: kind of record.
        check: what its value must be.
        record: name of the array record, where it travels in one.
        view: read without a copy: the value must not be written to.
    """

    place: Place
    check: Check
    record: str = ""
    view: bool = False


def setting(check: Check, default: Any = MISSING) -> Any:
    """A value in the record ``config``."""
    return _declared(Travels(Place.CONFIG, check), default)


def metric(check: Check, default: Any = MISSING) -> Any:
    """A number, or a list of numbers, in the record ``metrics``."""
    return _declared(Travels(Place.METRICS, check), default)


def tensor(check: Check, record: str = "arrays", default: Any = MISSING, view: bool = False) -> Any:
    """One array of an array record; in a record of its own, other than ``arrays``, it may have any name."""
    return _declared(Travels(Place.TENSOR, check, record, view), default)


def array_record(record: str = "arrays", default: Any = MISSING) -> Any:
    """A whole array record, such as a state dict; its arrays are checked by whoever knows their names and shapes."""
    return _declared(Travels(Place.RECORD, lambda key, value: value, record), default)


def image_spec(fewest_classes: int = 1) -> Any:
    """An :class:`~fedsynth.spec.ImageSpec`."""
    return _declared(Travels(Place.SPEC, partial(_bounded_spec, fewest_classes)), MISSING)


def _declared(travels: Travels, default: Any) -> Any:
    return field(metadata={"travels": travels}, **({} if default is MISSING else {"default": default}))


def whole(low: int = 0, high: int = LARGEST_WHOLE) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            above = f"{low} to {high}" if high < LARGEST_WHOLE else f"{low} up"
            raise MessageError(f"{key} = {shown(value)}: must be a whole number from {above}")
        return value

    return check


def real(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from ``low`` to ``high``."""

    def check(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MessageError(f"{key} = {shown(value)}: must be a number")
        if not abs(value) <= sys.float_info.max or not low <= value <= high:
            bounds = [f"{word} {bound:g}" for word, bound in ((">=", low), ("<=", high)) if math.isfinite(bound)]
            raise MessageError(f"{key} = {shown(value)}: must be {' and '.join(['finite', *bounds])}")
        return float(value)

    return check


LOSS = real(-MAX_LOSS, MAX_LOSS)
"""A loss, which another network's may put below zero."""


def flag(key: str, value: Any) -> bool:
    """True or false; metrics hold them as 1 and 0."""
    if value not in (0, 1):
        raise MessageError(f"{key} = {shown(value)}: must be true or false")
    return bool(value)


def text(pattern: str = r".{0,1000}") -> Check:
    """Text that a regular expression matches as a whole."""

    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise MessageError(f"{key} = {shown(value)}: must be text that matches {pattern}")
        return value

    return check


ENVELOPE = text(r"\{[ -~]{0,49150}\}")
"""A signed statement as JSON, see :mod:`fedsynth.replicas.envelopes`."""
KEYS = text(r"\[.{0,400000}\]")
"""Names and public keys of all silos as JSON."""


def several(check: Check, most: int = 100_000) -> Check:
    """A list of values that pass ``check``, read as a tuple."""

    def check_all(key: str, values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list | tuple) or len(values) > most:
            raise MessageError(f"{key} = {shown(values)}: must be a list of {most} values at most")
        return tuple(check(key, value) for value in values)

    return check_all


def array(ndim: int, *dtypes: torch.dtype, low: int | None = None) -> Check:
    """A tensor of ``ndim`` dimensions and finite numbers >= ``low``, of one of ``dtypes``.

    Without ``dtypes`` any floating-point numbers, which are read as single precision and must be finite there.
    """

    def check(key: str, value: torch.Tensor) -> torch.Tensor:
        if value.ndim != ndim:
            raise MessageError(f"{key} has shape {tuple(value.shape)}: must have {ndim} dimensions")
        if value.dtype not in dtypes and (dtypes or not value.is_floating_point()):
            wanted = " or ".join(_name(dtype) for dtype in dtypes) or "floating-point"
            raise MessageError(f"{key} is {_name(value.dtype)}: must be {wanted}")
        value = value if dtypes else value.float()
        if value.numel():
            # The extremes of what is not finite are not finite; isfinite() on everything would need a copy.
            least, greatest = (extreme.item() for extreme in torch.aminmax(value))
            if not math.isfinite(least) or not math.isfinite(greatest):
                raise MessageError(f"{key} is not finite")
            if low is not None and least < low:
                raise MessageError(f"{key} has a value {least}: must be >= {low}")
        return value

    return check


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bounded_spec(fewest_classes: int, key: str, spec: ImageSpec) -> ImageSpec:
    if spec.channels not in (1, 3) or not 1 <= spec.size <= MAX_SIZE:
        raise MessageError(
            f"images of {spec.size} pixels and {spec.channels} channels: must be 1 to {MAX_SIZE} pixels, and 1 or 3"
            " channels"
        )
    if not fewest_classes <= len(spec.classes) <= MAX_CLASSES or len(set(spec.classes)) < len(spec.classes):
        raise MessageError(f"{len(spec.classes)} classes: must be {fewest_classes} to {MAX_CLASSES} distinct names")
    for name in spec.classes:
        if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise MessageError(f"class name {shown(name)}: must be 1 to {MAX_NAME_LENGTH} printable characters")
    return spec


def shown(value: Any) -> str:
    """Return a value for an error text: in about a hundred characters, however large it is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a huge number"
    return text if len(text) <= 120 else f"{text[:117]}..."
