"""What a run needs to continue after its last finished round, in one file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fedsynth.config import Scalar
from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.sealed import OtherFormatError, Seal, SealError
from fedsynth.sealed_tensors import load_torch, save_torch
from strategies.conversation.census import Census

logger = logging.getLogger("fedsynth")

NAME = "last.pt"
PREVIOUS = "previous.pt"
"""The checkpoint of the round before: where the run goes on if the last one is damaged."""

SEAL = Seal("run checkpoint", 1)


@dataclass
class Checkpoint:
    """Where a run stands. Random numbers need no state: every generator is derived from seed, purpose and round.

    Attributes:
        round: number of the last finished round.
        arrays: what the strategy refines, by name.
        strategy: its :meth:`~strategies.base.SynthesisStrategy.state_dict`.
        costs: the costs so far.
        silos: label counts of every silo by name.
        settings: configuration keys that may not change when a run is continued; empty in those of earlier versions.
    """

    round: int
    arrays: dict[str, torch.Tensor]
    strategy: dict[str, Any]
    costs: dict[str, Any]
    silos: dict[str, list[int]]
    settings: dict[str, Scalar] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Replace the checkpoint in ``folder``, and keep the one before; whenever the process is killed, one is whole.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        path = folder / NAME
        with explained_writing(path):
            save_torch(path, {part.name: getattr(self, part.name) for part in fields(self)}, SEAL, folder / PREVIOUS)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint | None:
        """Read the newest whole checkpoint of a run folder; None if no round was finished.

        Raises:
            UserError: the files are damaged, of another format, or cannot be read.
        """
        paths = [path for name in (NAME, PREVIOUS) if (path := folder / name).exists()]
        damage: list[tuple[Path, SealError | TypeError]] = []
        for path in paths:
            try:
                found = cls(**load_torch(path, SEAL))
            except OSError as error:
                raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}; make it readable") from error
            except OtherFormatError as error:
                raise UserError(f"checkpoint '{path}': {error}") from error
            except (SealError, TypeError) as error:
                damage.append((path, error))
                continue
            for worse, why in damage:
                logger.warning("checkpoint '%s' is damaged (%s): going on from '%s'", worse, why, path.name)
            return found
        if damage:
            said = [f"checkpoint '{path}' is damaged: remove it to start at round 1 ({why})" for path, why in damage]
            raise UserError("; ".join(said))
        return None

    def check_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Compare the settings of the run folder with those that the checkpoint was made with.

        Raises:
            UserError: ``config.json`` is another run's, or was edited.
        """
        for key, value in self.settings.items():
            if key in settings and settings[key] != value:
                raise UserError(
                    f"{key} = {settings[key]!r} in config.json, but the run's checkpoint was made with {value!r}:"
                    " restore config.json, or start another run"
                )

    def check_silos(self, census: Census) -> None:
        """Compare the silos of now with those of then.

        Raises:
            UserError: other silos; different images of the same silos are only named in the log.
        """
        now = {member.name: member.label_counts for member in census}
        if now.keys() != self.silos.keys():
            raise UserError(
                f"silos {sorted(now)} are connected, but the run to resume has {sorted(self.silos)}:"
                " connect the same ones under the same names"
            )
        for name, counts in now.items():
            if counts != self.silos[name]:
                logger.warning("%s held %s images per class, now %s", name, self.silos[name], counts)
