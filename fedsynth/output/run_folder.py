"""The folder of one run: its paths, and the files that grow during the run."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsynth.config import AUTO, KEYS, RunConfig, Scalar, filled, without_idle_keys, without_paths
from fedsynth.config.recipe import PAPER
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_file, json_text, parse_json, write_json
from fedsynth.logs import LineFormatter
from fedsynth.sealed import Seal, sealed_json, unsealed_json
from fedsynth.text import without_machine_paths

FORMER_KEYS: dict[str, Scalar] = {
    **{"experts-per-sample": 0, "corrector-steps": 0, "step-power": 1.0},
    **{"min-gain": 0.1, "max-excess": 1.2, "picard-tolerance": 0.1},
}
"""Keys that runs of earlier versions may hold, and the only value of each that is still computed with."""


_ROW = Seal("round of a run", 1)


def default_name(strategy: str, dataset: str, seed: int, now: datetime) -> str:
    """Return ``<time>-<strategy>-<dataset>-<seed>``; names sort by time."""
    # A plug-in's "module:name" is not a valid folder name everywhere.
    return f"{now:%Y%m%d-%H%M%S}-{strategy}-{dataset}-{seed}".replace(":", ".")


class RunFolder:
    """The paths of a run. Opening one creates nothing: see :meth:`create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.machine = path / "machine.json"
        self.partition = path / "partition.json"
        self.log = path / "log.txt"
        self.metrics = path / "metrics.jsonl"
        self.status = path / "status.json"
        self.results = path / "results.json"
        self.synthetic = path / "synthetic"
        self.models = path / "models"
        self.checkpoints = path / "checkpoints"
        self.audit = path / "audit"
        self.spool = path / "spool"
        self.report = path / "report.html"
        self.figures = path / "figures"
        self.tracker = path / "tracker.json"

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """Make the folder ``root/name`` and make sure that it can be written.

        Raises:
            UserError: ``name`` is not a plain folder name, exists and is not empty, or cannot be written.
        """
        path = root / name
        if name in ("", ".", "..") or path.name != name:
            raise UserError(f"run name '{name}' is not a plain folder name: use letters, digits and hyphens")
        with explained_writing(path):
            if path.is_dir() and any(path.iterdir()):
                raise UserError(f"run folder '{path}' exists and is not empty: choose another name, or resume that run")
            path.mkdir(parents=True, exist_ok=True)
            # Permission bits are not enough (root, read-only mounts): only writing shows it.
            tempfile.TemporaryFile(dir=path).close()
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the folder of an earlier run.

        Raises:
            UserError: there is none at ``path``.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"'{path}' is no run folder (it holds no config.json): give the folder of a run")
        return folder

    def write_config(self, value: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        self._write(self.config, value)

    def record_config(self, config: RunConfig, found: Mapping[str, Scalar] | None = None) -> None:
        """Write ``config.json`` for readers anywhere, and where the files lie on this machine to ``machine.json``.

        Args:
            config: the run's, strategy and recipe resolved.
            found: by key, what ``"auto"`` became when the images were known; None: they are not yet.
        """
        flat, from_images = config.to_run_config(), filled(config, found or {})
        paths = {key: value for key, value in flat.items() if KEYS[key].facts.path}
        # Before the configuration, without which a folder is no run's.
        self._write(self.machine, {"paths": paths})
        shown = without_paths(flat | from_images)
        self._write(
            self.config, {"config": shown, "resolved": list(config.resolved), "resolved-from-images": [*from_images]}
        )

    def read_config(self) -> RunConfig:
        """Return the run's configuration as it was given, with the record of what had been resolved.

        That is ``config.json`` with the paths from ``machine.json``, where there is one: a folder that came from
        another machine has the last names of its paths only. What was resolved from the images is ``"auto"`` again.

        Raises:
            UserError: the file is damaged.
        """
        try:
            content = self._read(self.config)
            # Runs from before there were recipes had the paper's.
            settings = {"recipe": PAPER, **dict(content["config"].items()), **self._paths()}
            settings |= dict.fromkeys(content.get("resolved-from-images", ()), AUTO)
            # How often silos said how far their training was, and how few images they said nothing of, changed nothing
            # else.
            for key in ("slice-seconds", "min-statistics-samples"):
                settings.pop(key, None)
            for key, value in FORMER_KEYS.items():
                if (given := settings.pop(key, AUTO)) not in (AUTO, value):
                    raise UserError(f"{key} = {given}: this version of fedsynth works with {value} only")
            # Earlier versions ignored, and wrote down, keys that do not act beside the others.
            config = RunConfig.from_run_config(without_idle_keys(settings))
            resolved = [key for key in content["resolved"] if key not in FORMER_KEYS]
            return config.model_copy(update={"resolved": tuple(resolved)})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"'{self.config}' is damaged: restore it, or start another run ({error})") from error

    def refuse_changes(self, flat: Mapping[str, Scalar], fixed: Collection[str] = ()) -> None:
        """Compare a configuration to continue with and the run's own.

        Args:
            flat: values of the former, by key.
            fixed: keys that may not differ although others of their kind may.

        Raises:
            UserError: a key differs that may not.
        """
        known = self.read_config().to_run_config()
        for key, value in flat.items():
            if value != known[key] and (key in fixed or not KEYS[key].may_change):
                where = KEYS[key].may_change_where
                raise UserError(
                    f"{key} = {value!r}: the run to resume has {known[key]!r}"
                    + (f", and it may change only {where}" if where else "")
                    + "; give the same, or start another run ('fedsynth run --resume' takes over the run's"
                    " configuration)"
                )

    def write_partition(self, value: Mapping[str, Any]) -> None:
        """Write ``partition.json``."""
        self._write(self.partition, value)

    def read_partition(self) -> dict[str, Any]:
        """Return the content of ``partition.json``.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return self._read(self.partition)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"'{self.partition}' is damaged: restore it, or start another run ({error})") from error

    def write_results(self, value: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        self._write(self.results, self._shared(value))

    def read_results(self) -> dict[str, Any] | None:
        """Return the content of ``results.json``; None while there is none.

        Raises:
            UserError: the file is damaged.
        """
        if not self.results.is_file():
            return None
        try:
            return self._read(self.results)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"'{self.results}' is damaged: restore it, or remove it and run again ({error})") from error

    def write_status(self, value: Mapping[str, Any]) -> None:
        """Write ``status.json``."""
        self._write(self.status, self._shared(value))

    def read_status(self) -> dict[str, Any]:
        """Return the content of ``status.json``.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
            TypeError: it is no JSON object.
        """
        return self._read(self.status)

    def write_tracker(self, value: Mapping[str, Any]) -> None:
        """Write ``tracker.json``."""
        self._write(self.tracker, value)

    def read_tracker(self) -> dict[str, Any]:
        """Return the content of ``tracker.json``; empty if no tracker was told of the run.

        Raises:
            UserError: the file is damaged.
        """
        if not self.tracker.is_file():
            return {}
        try:
            return self._read(self.tracker)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"'{self.tracker}' is damaged: remove it, and the tracker begins another run ({error})"
            ) from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is on disk when this returns, even if the power fails next."""
        line = json_text(sealed_json(self._shared(row), _ROW)) + "\n"
        with explained_writing(self.metrics), self.metrics.open("ab") as file:
            _drop_torn_line(self.metrics)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, without a last line that a crash cut short; none if absent.

        Raises:
            UserError: a line is damaged.
        """
        if not self.metrics.exists():
            return []
        whole_lines = self.metrics.read_bytes().split(b"\n")[:-1]
        return [self._read_row(number, line) for number, line in enumerate(whole_lines, 1)]

    def keep_metrics(self, rounds: int) -> None:
        """Drop rows of ``metrics.jsonl`` after round ``rounds``: a run that continues there writes them again."""
        kept = [json_text(sealed_json(row, _ROW)) + "\n" for row in self.read_metrics() if row["round"] <= rounds]
        if self.metrics.exists():
            with explained_writing(self.metrics), atomic_file(self.metrics) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def remove_torn_files(self) -> None:
        """Remove what killed processes had not finished writing, and what goes with a process."""
        self.remove_spool()
        for pattern in (".*.part", "*/.*.part"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove_spool(self) -> None:
        """Remove what was on disk only for lack of memory."""
        shutil.rmtree(self.spool, ignore_errors=True)

    def clear_torn_start(self) -> None:
        """Remove the folder of a run that ended before it wrote its configuration: there is nothing to go on with.

        Raises:
            UserError: it holds something else.
        """
        left = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        known = (self.log.name, self.machine.name)
        if any(name not in known and not name.endswith(".part") for name in left):
            raise UserError(f"'{self.path}' is in the way: it is no run folder (no config.json); move it elsewhere")
        if self.path.is_dir():
            shutil.rmtree(self.path)

    @contextmanager
    def log_to_file(self, logger: logging.Logger) -> Iterator[None]:
        """Copy what ``logger`` says to ``log.txt``, with the time, while the block runs."""
        with explained_writing(self.log):
            handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s", folder=self.path))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def _shared(self, value: Any) -> Any:
        """Return a copy that may be read elsewhere: what others said, or an error, can hold paths of a machine."""
        if isinstance(value, Mapping):
            return {key: self._shared(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shared(item) for item in value]
        return without_machine_paths(value, self.path) if isinstance(value, str) else value

    def _paths(self) -> dict[str, Any]:
        return dict(self._read(self.machine)["paths"]) if self.machine.is_file() else {}

    def _read_row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return unsealed_json(parse_json(line), _ROW, self.metrics)
        except (ValueError, TypeError) as error:
            raise UserError(f"'{self.metrics}' is damaged: remove line {number} ({error})") from error

    def _write(self, path: Path, value: Mapping[str, Any]) -> None:
        with explained_writing(path):
            write_json(path, sealed_json(value, _seal_of(path)))

    def _read(self, path: Path) -> dict[str, Any]:
        return unsealed_json(parse_json(path.read_text(encoding="utf-8")), _seal_of(path), path)


def _seal_of(path: Path) -> Seal:
    return Seal(f"run {path.stem}", 1)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its newline: a row appended to it would be lost with it."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
