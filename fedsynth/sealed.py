"""Seals: files that say what they hold, in which format, whose it is, and with which checksum.

A seal is one line of text: ``fedsynth run checkpoint, format 1, of run-7, sha256 0f3a…``. JSON files carry it as their
entry ``"integrity"``, safetensors files in their metadata, folders in a file ``integrity.json`` that lists a checksum
per file, and other files as their last line, which ``torch.load`` and ``numpy.load`` do not look at.
So each stays readable by the tools that it is for; :mod:`fedsynth.sealed_tensors` has those of torch. What earlier
versions wrote has no seal: it is read, and said once.

A seal is against damage and mix-ups; whoever can write a file can seal it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedsynth.files import file_digest, write_json

logger = logging.getLogger("fedsynth")

ENTRY = "integrity"
FOLDER_FILE = "integrity.json"

_TEXT = re.compile(r"fedsynth (?P<content>[a-z ]+), format (?P<format>\d+)(?:, of (?P<owner>.*))?, sha256 (?P<sha>\w+)")
_MAX_TEXT_BYTES = 1024
_said: set[str] = set()
_CHUNK_BYTES = 1 << 20


class SealError(ValueError):
    """A file is not what was written; the message is the cause, to be put in brackets after the file's name."""


class OtherFormatError(SealError):
    """A file of another format, which is not damaged."""


@dataclass(frozen=True)
class Seal:
    """What a file is.

    Attributes:
        content: what it holds, in small letters and spaces.
        format: number of its format, to be raised whenever a reader of the earlier one would misread it.
        owner: which run, silo or model it belongs to, on one line; None: anybody's will do.
    """

    content: str
    format: int
    owner: str | None = None

    def text(self, digest: str) -> str:
        """Return the line of text around a checksum."""
        owner = f", of {self.owner}" if self.owner else ""
        return f"fedsynth {self.content}, format {self.format}{owner}, sha256 {digest}"

    def check(self, text: Any, chunks: Iterable[bytes | memoryview]) -> None:
        """Compare a seal's text and what is sealed with what they should be.

        Raises:
            SealError: says which of the three is wrong: content and format, owner, checksum.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise SealError("its seal is damaged")
        if found["content"] != self.content:
            raise SealError(f"it is a {found['content']}, not a {self.content}")
        if int(found["format"]) != self.format:
            raise OtherFormatError(
                f"it has format {found['format']}, and this fedsynth reads format {self.format}:"
                " use the version that wrote it"
            )
        if self.owner is not None and (found["owner"] or "") != self.owner:
            raise SealError(f"it is of {found['owner'] or 'nobody'}, not of {self.owner}")
        if found["sha"] != sha256_of(chunks):
            raise SealError("its content does not match its checksum: it was damaged or edited")


def sealed_bytes(content: bytes, seal: Seal) -> bytes:
    """Return ``content`` with its seal as last line."""
    return content + seal_line(seal, sha256_of([content]))


def unsealed_bytes(content: bytes, seal: Seal) -> memoryview:
    """Return what :func:`sealed_bytes` was given.

    Raises:
        SealError: it is not that, or has no seal.
    """
    text = _last_line(content[-_MAX_TEXT_BYTES:])
    inner = memoryview(content)[: len(content) - len((text or "").encode()) - 2]
    seal.check(text, [inner])
    return inner


def sealed_json(value: Mapping[str, Any], seal: Seal) -> dict[str, Any]:
    """Return ``value`` with its seal, ready for :func:`~fedsynth.files.write_json`."""
    return {**value, ENTRY: seal.text(sha256_of([_canonical(value)]))}


def unsealed_json(value: Any, seal: Seal, path: Path) -> dict[str, Any]:
    """Return what :func:`sealed_json` was given; what has no seal as it is.

    Args:
        value: as ``json.loads`` returns it.
        seal: what it should be.
        path: of the file, to be named if it has no seal.

    Raises:
        SealError: it is not what was written.
        TypeError: it is no JSON object.
    """
    if not isinstance(value, dict):
        raise TypeError(f"it is no JSON object but a {type(value).__name__}")
    if ENTRY not in value:
        say_unsealed(seal.content, path)
        return value
    inner = {key: item for key, item in value.items() if key != ENTRY}
    seal.check(value[ENTRY], [_canonical(inner)])
    return inner


def seal_folder(folder: Path, seal: Seal) -> None:
    """Write ``integrity.json``: a checksum for every file that is in the folder now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FOLDER_FILE)
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_json(folder / FOLDER_FILE, sealed_json({"files": sums}, seal))


def check_folder(folder: Path, seal: Seal) -> None:
    """Check every file that :func:`seal_folder` found; others may have been added since.

    Raises:
        SealError: names the first that is missing or not what was written.
        OSError: one cannot be read.
    """
    path = folder / FOLDER_FILE
    if not path.is_file():
        say_unsealed(seal.content, folder)
        return
    try:
        sums = unsealed_json(json.loads(path.read_text(encoding="utf-8")), seal, path)["files"].items()
    except SealError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SealError(f"its {FOLDER_FILE} is damaged: {error}") from error
    for name, digest in sums:
        file = folder / name
        if not file.is_file():
            raise SealError(f"it lacks {name}")
        if file_digest(file) != digest:
            raise SealError(f"{name} does not match its checksum")


def check_file(path: Path, seal: Seal) -> bool:
    """Compare a file with the seal that is its last line; False if it has none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_TEXT_BYTES))
        text = _last_line(file.read())
        if text is None:
            return False
        file.seek(0)
        seal.check(text, _chunks(file, size - len(text.encode()) - 2))
    return True


def say_unsealed(content: str, path: Path) -> None:
    """Say, once a process and kind of content, that an earlier version wrote a file."""
    if content not in _said:
        _said.add(content)
        logger.info(
            "'%s' is of an earlier version, without checksum: damage to such a %s goes unnoticed", path, content
        )


def sha256_of(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of chunks that follow each other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def seal_line(seal: Seal, digest: str) -> bytes:
    """Return what :func:`check_file` looks for at the end of a file with this SHA-256."""
    return f"\n{seal.text(digest)}\n".encode()


def _last_line(tail: bytes) -> str | None:
    """Return the text of the seal at the end of a file; None if there is none."""
    _, start, text = tail.rpartition(b"\nfedsynth ")
    return f"fedsynth {text.decode(errors='replace').removesuffix(chr(10))}" if start else None


def _chunks(file: BinaryIO, size: int) -> Iterable[bytes]:
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk


def _canonical(value: Mapping[str, Any]) -> bytes:
    # Through JSON and back: tuples become lists and keys strings, as whoever reads the file has them.
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True, separators=(",", ":")).encode()
