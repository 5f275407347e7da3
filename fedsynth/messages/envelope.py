"""What all messages have in common: who answers, the protocol's number, the way to Flower's records and back.

A request is a record ``config`` and array records; an answer is a record ``metrics``, a record ``silo`` that says who
answers, and perhaps ``config`` and array records. Array records travel packed (:mod:`fedsynth.messages.packing`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsynth import __version__
from fedsynth.messages import transport
from fedsynth.messages.fields import (
    MAX_CLASSES,
    MAX_SECONDS,
    MessageError,
    Place,
    Travels,
    metric,
    real,
    several,
    shown,
    text,
    whole,
)
from fedsynth.spec import ImageSpec
from fedsynth.text import silo_name_problem

PROTOCOL = 2
"""Goes up by one with every change after which an older server or silo would misread a message."""

MAX_PARTITIONS = 2**31

CONFIG = "config"
METRICS = "metrics"
SILO = "silo"
WIRE_DTYPE = "wire_dtype"
_PROTOCOL = "protocol"
_VERSION = "version"
_A_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,40}")
_PARTITION = "partition-id"
_NAME = "silo-name"
_SPEC = ("image-channels", "image-size", "classes")

Reply = Message
"""An answer as Flower brings it."""

Shared = dict[tuple[Any, ...], tuple[ArrayRecord, list[torch.Tensor]]]
"""Records that are encoded already, keyed by the tensors in them, so that shared ones are encoded once.

The tensors are kept, since another one could get the ``id`` of one that is gone."""


class Sender(NamedTuple):
    """The silo behind an answer, the same in every run.

    Attributes:
        order: simulated silos sort by partition, real ones (0) by name, those that do not say by node id.
        name: ``silo-<partition>``, or what the silo calls itself.
        partition: of a simulated silo.
    """

    order: int
    name: str
    partition: int | None = None

    @classmethod
    def of_partition(cls, partition: int) -> Sender:
        """Return the sender of a simulated silo."""
        return cls(partition, f"silo-{partition}", partition)


NOBODY = Sender(0, "")


@cache
def installed_version() -> str:
    """Return the version of the fedsynth that is installed here.

    The program of a run comes from the server: at a silo its ``__version__`` is the server's.
    """
    try:
        return version_of("fedsynth")
    except PackageNotFoundError:
        return __version__


def sender_of(reply: Message) -> Sender:
    """Return who says to have sent an answer; one that does not say, or by no fit name, goes by its node id."""
    silo = reply.content.get(SILO) if reply.has_content() else None
    if isinstance(silo, ConfigRecord):
        partition = silo.get(_PARTITION)
        name = silo.get(_NAME)
        if isinstance(partition, int) and not isinstance(partition, bool) and 0 <= partition < MAX_PARTITIONS:
            return Sender.of_partition(partition)
        if isinstance(name, str) and not silo_name_problem(name):
            return Sender(0, name)
    return Sender(reply.metadata.src_node_id, f"node-{reply.metadata.src_node_id}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Typed:
    """A message's fields, and how they become records.

    Attributes:
        introduces: whether this is said before anything else, by server or silo: with the version of its fedsynth. Of a
            silo's answer the protocol must be said, too; later ones of the same silo need not, so that answers can be
            made by hand.
    """

    introduces: ClassVar[bool] = False

    def check(self) -> None:
        """Compare fields with each other.

        Raises:
            MessageError: they do not go together.
        """

    def digest(self, without: Collection[str] = ()) -> str:
        """Return the SHA-256, as hexadecimal digits, of every field that travels, the same at both ends.

        Args:
            without: names of fields that do not count.
        """
        found = sha256(type(self).__name__.encode())
        for info, travels in _travelling(type(self)):
            value = getattr(self, info.name)
            if info.name in without or value is None:
                continue
            match travels.place:
                case Place.CONFIG | Place.METRICS:
                    # As it is read: 1 and 1.0 are written differently.
                    said: list[Any] = [travels.check(_key(info), value)]
                case Place.SPEC:
                    said = [value.channels, value.size, *value.classes]
                case Place.RECORD:
                    said = [[name, array.dtype, array.shape] for name, array in value.items()]
                case Place.TENSOR:
                    said = [str(value.dtype), list(value.shape)]
            found.update(json.dumps([info.name, said], default=bytes.hex).encode())
            if travels.place is Place.RECORD:
                for array in value.values():
                    found.update(sha256(array.data).digest())
            if travels.place is Place.TENSOR:
                found.update(sha256(value.detach().cpu().contiguous().numpy().tobytes()).digest())
        return found.hexdigest()

    @classmethod
    def _parsed(cls, message: Message) -> dict[str, Any]:
        if not message.has_content():
            raise MessageError("there is no content")
        return {info.name: _read(info, travels, message) for info, travels in _travelling(cls)}

    def _content(self, shared: Shared) -> RecordDict:
        content = RecordDict()
        values: dict[str, dict[str, Any]] = {CONFIG: {}, METRICS: {}}
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for info, travels in _travelling(type(self)):
            value = getattr(self, info.name)
            key = _key(info)
            if value is None:
                continue
            match travels.place:
                case Place.CONFIG | Place.METRICS:
                    values[travels.place.value][key] = _as_record_value(value, travels.place)
                case Place.SPEC:
                    values[CONFIG] |= dict(zip(_SPEC, (value.channels, value.size, list(value.classes)), strict=True))
                case Place.RECORD:
                    content[travels.record] = value
                case Place.TENSOR:
                    tensors.setdefault(travels.record, {})[key] = value
        for record, named in tensors.items():
            content[record] = _encoded(record, named, getattr(self, WIRE_DTYPE, None), shared)
        content[CONFIG] = ConfigRecord(values[CONFIG])
        content[METRICS] = MetricRecord(values[METRICS])
        return content


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer(_Typed):
    """What a silo answers.

    Attributes:
        sender: who answers, in the silo's own words: once there is a census, the server goes by whom it asked.
        num_examples: images behind the answer.
        seconds: time the silo worked on it.
        version: of the fedsynth that is installed at the silo; empty where it does not say.
    """

    sender: Sender = NOBODY
    version: str = ""
    num_examples: int = metric(whole(), 0)
    seconds: float = metric(real(0, MAX_SECONDS), 0.0)

    @classmethod
    def from_message(cls, reply: Message) -> Self:
        """Read an answer, and check all that can be checked without knowing the question.

        Raises:
            MessageError: it cannot be used.
        """
        record = reply.content.get(SILO) if reply.has_content() else None
        silo: Mapping[str, Any] = record if isinstance(record, ConfigRecord) else {}
        if cls.introduces or silo.get(_PROTOCOL) is not None:
            _check_protocol(silo, "silo", "server", __version__)
        if _NAME in silo and (problem := silo_name_problem(silo[_NAME])):
            raise MessageError(problem)
        answer = cls(**cls._parsed(reply), sender=sender_of(reply), version=_version_in(silo))
        answer.check()
        return answer

    def to_message(self, question: Message, sender: Sender) -> Message:
        """Return the answer to ``question``, packed."""
        content = self._content({})
        who = {_NAME: sender.name} if sender.partition is None else {_PARTITION: sender.partition}
        version = {_VERSION: installed_version()} if self.introduces else {}
        content[SILO] = ConfigRecord({_PROTOCOL: PROTOCOL, **version, **who})
        if not content[CONFIG]:
            del content[CONFIG]
        message = Message(content, reply_to=question)
        transport.pack_messages([message])
        return message


A_co = TypeVar("A_co", bound=Answer, covariant=True)
A = TypeVar("A", bound=Answer)
Reader = Callable[[Reply], A]
"""Reads and checks the answer to one question; raises :class:`MessageError` for one that cannot be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request(_Typed, Generic[A_co]):
    """What the server asks a silo.

    Attributes:
        kind: Flower's message type.
    """

    kind: ClassVar[str]

    def reader(self) -> Callable[[Reply], A_co]:
        """Return what reads and checks the answer to this question; it does not keep the question's arrays."""
        raise NotImplementedError

    @classmethod
    def from_message(cls, message: Message) -> Self:
        """Read a request at the silo.

        Raises:
            MessageError: another protocol, or it cannot be used.
        """
        _check_protocol(config_of(message), "server", "silo", installed_version())
        request = cls(**cls._parsed(message))
        request.check()
        return request

    def to_message(self, node_id: int, ttl: float | None = None, shared: Shared | None = None) -> Message:
        """Return the request to one silo; its arrays are packed when they are sent, once for all silos.

        Args:
            node_id: the silo's Flower node.
            ttl: seconds until it expires; None: Flower's default.
            shared: of the requests that are sent together with this one.
        """
        content = self._content({} if shared is None else shared)
        # Not through content.config_records, see transport.array_record.
        version = {_VERSION: __version__} if self.introduces else {}
        content[CONFIG] = ConfigRecord({_PROTOCOL: PROTOCOL, **version, **cast(ConfigRecord, content[CONFIG])})
        del content[METRICS]
        return Message(content, dst_node_id=node_id, message_type=self.kind, ttl=ttl)


def config_of(message: Message) -> Mapping[str, Any]:
    """Return the record ``config`` of a message as it came; empty if it has none."""
    record = message.content.get(CONFIG) if message.has_content() else None
    return record if isinstance(record, ConfigRecord) else {}


def _check_protocol(record: Mapping[str, Any], speaker: str, reader: str, version: str) -> None:
    stated = record.get(_PROTOCOL)
    if isinstance(stated, bool) or not isinstance(stated, int | None):
        advice = "install the same fedsynth at both"
    elif stated == PROTOCOL:
        return
    else:
        advice = f"update fedsynth at the {reader if (stated or 0) > PROTOCOL else speaker}"
    spoken = "a protocol before 1" if stated is None else f"protocol {shown(stated)}"
    theirs = f" (fedsynth {found})" if (found := _version_in(record)) else ""
    ours = f"this {reader} speaks protocol {PROTOCOL} (fedsynth {version})"
    raise MessageError(f"the {speaker} speaks {spoken}{theirs}, {ours}: {advice}")


def _version_in(record: Mapping[str, Any]) -> str:
    """Return the version that a message says; empty: none, or nothing that could be one."""
    stated = record.get(_VERSION)
    return stated if isinstance(stated, str) and _A_VERSION.fullmatch(stated) else ""


def _travelling(cls: type[_Typed]) -> Iterator[tuple[Field[Any], Travels]]:
    for info in fields(cls):
        if "travels" in info.metadata:
            yield info, info.metadata["travels"]


def _spec_in(config: Mapping[str, Any]) -> ImageSpec | None:
    if not any(key in config for key in _SPEC):
        return None
    channels, size, classes = (config.get(key) for key in _SPEC)
    names = several(text(), MAX_CLASSES)("classes", classes)
    return ImageSpec(whole()("image-channels", channels), whole()("image-size", size), names)


def _key(info: Field[Any]) -> str:
    return info.name.replace("_", "-")


def _as_record_value(value: Any, place: Place) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, bool) and place is Place.METRICS else value


def _encoded(record: str, named: dict[str, torch.Tensor], dtype: str | None, shared: Shared) -> ArrayRecord:
    identity = (record, dtype, *((key, id(value)) for key, value in named.items()))
    if identity not in shared:
        shared[identity] = transport.encode_tensors(named, dtype), list(named.values())
    return shared[identity][0]


def _read(info: Field[Any], travels: Travels, message: Message) -> Any:
    key = _key(info)
    try:
        value = _found(key, travels, message)
    except MessageError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"{key}: {error}") from error
    if value is None:
        if info.default is MISSING:
            raise MessageError(f"{key} is missing")
        return info.default
    return travels.check(key, value)


def _found(key: str, travels: Travels, message: Message) -> Any:
    """Return a field's value as it came; None if there is none."""
    match travels.place:
        case Place.CONFIG:
            return config_of(message).get(key)
        case Place.METRICS:
            record = message.content.get(METRICS)
            return record.get(key) if isinstance(record, MetricRecord) else None
        case Place.SPEC:
            return _spec_in(config_of(message))
    if travels.record not in transport.array_names(message):
        return None
    record = transport.array_record(message, travels.record)
    if travels.place is Place.RECORD:
        return record
    if key not in record and travels.record != "arrays" and len(record) == 1:
        key = next(iter(record))
    if key not in record:
        return None
    return transport.peek(record[key]) if travels.view else transport.decode(record[key])
