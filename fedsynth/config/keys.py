"""What a configuration key is: a field of a pydantic class that also says what it affects and with what it acts.

Type, range, default, meaning and everything else about a key stand on its field and nowhere else; options, help,
documents, the rules of resuming and of comparing runs are derived from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from fedsynth.config.types import A_FOLDER, A_NUMBER, AUTO, Described, Scalar
from fedsynth.errors import UserError, did_you_mean, unknown_choice
from fedsynth.plugins import family, is_plugin

Affects = Literal["results", "execution", "measures"]
_NO_SUCH_WORD = ("literal_error", "string_pattern_mismatch")
_KINDS = {int: "a whole number", float: "a number", str: "text"}
_BOUNDS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}


@dataclass(frozen=True)
class Facts:
    """What a key says of itself besides type, range, default and meaning.

    Attributes:
        path: it is a path of the file system.
        affects: ``results``; ``execution``, only where a run works and how long it waits; or ``measures``, only which
            further measures are taken.
        may_change: it may change when a run continues, although it affects results; a text: where alone it may.
        commands: commands that take it besides ``run`` and ``sweep``, which take all keys.
        acts_with: other key -> the values of it with which this key acts; a plug-in's name always is one.
        incomparable: why results with different values of it cannot be compared.
    """

    path: bool = False
    affects: Affects = "results"
    may_change: bool | str = False
    commands: tuple[str, ...] = ()
    acts_with: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    incomparable: str = ""


def key(
    default: Any,
    meaning: str,
    *,
    path: bool = False,
    affects: Affects = "results",
    may_change: bool | str = False,
    commands: tuple[str, ...] = (),
    acts_with: Mapping[str, tuple[Scalar, ...]] | None = None,
    incomparable: str = "",
) -> Any:
    """Declare a configuration key as a field of a :class:`Section`; arguments as of :class:`Facts`."""
    facts = Facts(path, affects, may_change, commands, acts_with or {}, incomparable)
    return Field(default, description=meaning, json_schema_extra={"facts": facts})  # type: ignore[dict-item]


def kebab(name: str) -> str:
    """Return the key of a field: ``dfd_rounds`` -> ``dfd-rounds``."""
    return name.replace("_", "-")


class Section(BaseModel):
    """Keys that belong together: frozen and strict; fields are kebab-case keys outside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=kebab,
        populate_by_name=True,
    )
    commands: ClassVar[tuple[str, ...]] = ()
    """Commands that take all keys of the section, besides ``run`` and ``sweep``."""


@dataclass(frozen=True)
class Key:
    """A configuration key, as it stands in a run's configuration.

    Attributes:
        name: in kebab-case.
        section: attribute of :class:`fedsynth.config.RunConfig`.
        group: what it belongs to, a heading.
        field: its declaration.
        commands: that take it, besides ``run`` and ``sweep``.
        acts_with: as of :class:`Facts`, with the strategies that take it.
    """

    name: str
    section: str
    group: str
    field: FieldInfo
    commands: tuple[str, ...]
    acts_with: Mapping[str, tuple[Scalar, ...]]

    @property
    def facts(self) -> Facts:
        """What the declaration says besides type, range, default and meaning."""
        return facts_of(self.field)

    @property
    def default(self) -> Scalar:
        """Its default."""
        value: Scalar = self.field.default
        return value

    @property
    def meaning(self) -> str:
        """What it is for, a phrase."""
        return self.field.description or ""

    @property
    def allowed(self) -> str:
        """Type and range in words."""
        return allowed_values(self.field)

    @property
    def is_text(self) -> bool:
        """Whether every text is a value, also one that reads like a number."""
        return self.field.annotation is str

    @property
    def may_change(self) -> bool:
        """Whether it may change when a run continues, at least where :attr:`may_change_where` says."""
        return bool(self.facts.may_change) or self.facts.affects != "results"

    @property
    def may_change_where(self) -> str:
        """Where alone it may; empty: everywhere, or nowhere."""
        return self.facts.may_change if isinstance(self.facts.may_change, str) else ""

    def why_idle(self, value: Scalar, values: Mapping[str, Any]) -> str:
        """As the function of that name."""
        return why_idle(self.name, value, self.acts_with, values)


def facts_of(info: FieldInfo) -> Facts:
    """Return what :func:`key` noted."""
    facts = (info.json_schema_extra or {})["facts"]  # type: ignore[index]
    assert isinstance(facts, Facts)
    return facts


S = TypeVar("S", bound=Section)


def parse(section: type[S], values: Mapping[str, Any]) -> S:
    """Build a section from values by key or field name.

    Raises:
        UserError: names the key, the value and what is allowed, for a misspelt word the nearest one.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise _as_user_error(error, section) from None


def why_idle(name: str, value: Scalar, acts_with: Mapping[str, tuple[Scalar, ...]], values: Mapping[str, Any]) -> str:
    """Say with what a key acts if it does not act beside ``values``; empty if it does, or if that is not known."""
    for other, wanted in acts_with.items():
        found = values.get(other, AUTO)
        if A_NUMBER in wanted and isinstance(found, int | float):
            continue
        if A_FOLDER in wanted and found:
            continue
        if found not in (AUTO, *wanted) and family(str(found)) not in wanted and not is_plugin(str(found)):
            if tuple(wanted) == ("",):
                return f"{name} = {value!r}: does not act beside {other} = '{found}'; leave one of them out"
            words = [word if word in (A_NUMBER, A_FOLDER) else in_words(word) for word in wanted]
            first, only = f"{other} = {words[0]}", f"{other} = {one_of_words(words)}"
            return f"{name} = {value!r}: acts with {only} only; leave it out or set {first}"
    return ""


def allowed_values(info: FieldInfo) -> str:
    """Return type and range of a field in words, such as ``'auto' or a whole number >= 1``."""
    words = [repr(word) for word in literal_words(info.annotation)]
    if get_origin(info.annotation) is tuple:
        return f"a list of {one_of_words([*words, *_ranges(get_args(info.annotation)[0], ())])}"
    return one_of_words([*words, *_ranges(info.annotation, info.metadata)])


def in_words(value: Scalar) -> str:
    """Return a value as an error text shows it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def one_of_words(words: Iterable[str]) -> str:
    """Return ``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _as_user_error(error: ValidationError, section: type[Section]) -> UserError:
    """Say the first violation in the user's words: key = value, then what is allowed."""
    details = error.errors()[0]
    if not details["loc"]:
        return UserError(str(details["ctx"]["error"]))
    name, value = str(details["loc"][0]), details["input"]
    info = section.model_fields.get(name.replace("-", "_"))
    if info is None:
        return UserError(f"unknown setting '{name}'{did_you_mean(name, map(kebab, section.model_fields))}")
    words = literal_words(info.annotation)
    kinds = [found["type"] for found in error.errors() if found["loc"][0] == details["loc"][0]]
    if words and isinstance(value, str) and all(kind in _NO_SUCH_WORD for kind in kinds):
        return unknown_choice(kebab(name), value, words)
    finite = "finite, " if isinstance(value, float) and not math.isfinite(value) else ""
    return UserError(f"{kebab(name)} = {value!r}: must be {finite}{allowed_values(info)}")


def literal_words(annotation: Any) -> list[str]:
    """Return the words of an annotation's ``Literal`` parts."""
    parts = get_args(annotation)
    return [word for part in parts for word in ([part] if isinstance(part, str) else literal_words(part))]


def _ranges(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    """Return what an annotation allows besides words."""
    if get_origin(annotation) is Literal:
        return []
    if annotation is bool:
        return ["true", "false"]
    if hasattr(annotation, "__metadata__"):
        return _ranges(get_args(annotation)[0], annotation.__metadata__)
    if get_args(annotation):
        return [text for part in get_args(annotation) for text in _ranges(part, ())]
    if described := [
        item.description for item in metadata if isinstance(item, FieldInfo | Described) and item.description
    ]:
        return described
    limits = [limit for item in metadata for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = " and ".join(
        f"{sign} {getattr(limit, kind.__name__.lower()):g}"
        for limit in limits
        for kind, sign in _BOUNDS.items()
        if isinstance(limit, kind)
    )
    nonempty = " that is not empty" if any(isinstance(limit, MinLen) for limit in limits) else ""
    bounds += "".join(f"of at most {limit.max_length} characters" for limit in limits if isinstance(limit, MaxLen))
    return [f"{_KINDS[annotation]}{nonempty}{' ' * bool(bounds)}{bounds}"]
