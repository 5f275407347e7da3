"""``audit/`` of a run folder: the log of what was signed, and the list of the run's files."""

from __future__ import annotations

from pathlib import Path

from fedsynth.files import file_digest, parse_json, write_json

LOG = "log.jsonl"
KEYS = "keys.json"
FILES = "files.json"
LAST_LEVEL = "last-level.safetensors"
"""What the last round of certified cooperative inference made, from which the images follow."""
_GROWING = ("log.txt", "status.json")
"""Files that change until the process ends; they are no evidence."""


def list_files(run: Path, audit: Path) -> str:
    """Write the SHA-256 of every file of a finished run to ``audit/files.json``; return that of the list itself."""
    found = {
        path.relative_to(run).as_posix(): file_digest(path)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in _GROWING and (audit not in path.parents or path.name == LAST_LEVEL)
    }
    write_json(audit / FILES, found)
    return file_digest(audit / FILES)


def altered_files(run: Path, audit: Path, digest: str) -> list[str]:
    """Return what is wrong with the files of a run.

    Args:
        run: its folder.
        audit: ``audit`` in it.
        digest: what :func:`list_files` returned.
    """
    path = audit / FILES
    try:
        if file_digest(path) != digest:
            return [f"{audit.name}/{FILES} is altered: the log names another one"]
        listed = dict(parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        return [f"{audit.name}/{FILES} cannot be read: {error}"]
    problems = []
    for name, known in listed.items():
        try:
            if file_digest(run / name) != known:
                problems.append(f"{name} is altered")
        except OSError as error:
            problems.append(f"{name} is gone, or cannot be read: {error.strerror}")
    return problems
