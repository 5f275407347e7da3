"""What the headers of many image files say, kept beside decoded images: files are opened once, not by every process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsynth.data.image_cache import ImageCache, decoders, file_states
from fedsynth.files import atomic_file, parse_json
from fedsynth.sealed import Seal, sealed_json, unsealed_json

logger = logging.getLogger("fedsynth")

MANY_IMAGES = 1000
"""Fewer are looked at again: that takes no longer than a second."""
_FORMAT = 1
_SUFFIX = ".facts"


def kept_facts(
    compute: Callable[[], tuple[float, ...]],
    cache: ImageCache | None,
    count: int,
    files: Sequence[Path],
    *settings: Any,
) -> tuple[float, ...]:
    """Return what ``compute`` says of images, from a file if it was computed before.

    A file is ``<hash of names, sizes and times of change of the files, and settings>.facts``, sealed JSON. A damaged
    one is made again; where none can be written, the facts are computed every time.

    Args:
        compute: opens the files; returns finite numbers.
        cache: where facts lie; None: nothing is kept.
        count: number of images; of fewer than :data:`MANY_IMAGES` nothing is kept.
        files: that hold the images.
        settings: what else decides the facts, ready for JSON; the first says what they are.
    """
    if cache is None or count < MANY_IMAGES:
        return compute()
    source = json.dumps([_FORMAT, decoders(), file_states(files), settings])
    path = cache.folder / f"{hashlib.sha256(source.encode()).hexdigest()[:40]}{_SUFFIX}"
    found = _read(path)
    if found is None:
        found = compute()
        _write(path, found)
    return found


def _seal(path: Path) -> Seal:
    return Seal("facts of image files", _FORMAT, path.stem)


def _read(path: Path) -> tuple[float, ...] | None:
    try:
        facts = unsealed_json(parse_json(path.read_bytes()), _seal(path), path)["facts"]
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return tuple(facts) if isinstance(facts, list) and all(isinstance(fact, int | float) for fact in facts) else None


def _write(path: Path, facts: tuple[float, ...]) -> None:
    content = json.dumps(sealed_json({"facts": list(facts)}, _seal(path))).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.touch(mode=0o600)  # the images may be for their owner's eyes only
            temporary.write_bytes(content)
    except OSError as error:
        logger.info("what image files say is not kept in %s: %s", path.parent, error.strerror or error)
