"""``audit/`` of a run folder: the log of what was signed, and the list of the run's files."""

from __future__ import annotations

from pathlib import Path

from fedsynth.files import file_digest, parse_json, write_json

LOG = "log.jsonl"
KEYS = "keys.json"
FILES = "files.json"
LAST_LEVEL = "last-level.safetensors"
"""What the last round of certified cooperative inference made, from which the images follow."""
NO_EVIDENCE = ("log.txt", "status.json", "tensorboard", "wandb")
"""Files and folders of a run that change until its process ends, and nothing is read from."""
_OF_AUDIT = (LOG, KEYS, FILES, f".{LOG}.lock")
"""Files of the audit that the list is no word on: they are checked in other ways."""


def list_files(run: Path, audit: Path) -> str:
    """Write the SHA-256 of every file of a finished run to ``audit/files.json``; return that of the list itself."""
    write_json(audit / FILES, {name: file_digest(path) for name, path in _evidence(run, audit).items()})
    return file_digest(audit / FILES)


def _evidence(run: Path, audit: Path) -> dict[str, Path]:
    """Return all that lies in a run's folder, by name, but for what is no evidence, and for folders."""
    named = ((path.relative_to(run), path) for path in sorted(run.rglob("*")))
    return {
        name.as_posix(): path
        for name, path in named
        if name.parts[0] not in NO_EVIDENCE
        and not (path.parent == audit and path.name in _OF_AUDIT)
        and (path.is_symlink() or not path.is_dir())
    }


def altered_files(run: Path, audit: Path, digest: str) -> list[str]:
    """Return what is wrong with the files of a run: altered, gone, or of nobody knows whom.

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
    added = sorted(_evidence(run, audit).keys() - listed.keys())
    return problems + [f"{name} is not of this run: it came later" for name in added]
