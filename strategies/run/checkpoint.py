"""What a run needs to continue after its last finished round, in one file."""

from __future__ import annotations

import logging
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fedsynth.disk import explained_writing
from fedsynth.errors import UserError
from fedsynth.files import atomic_file
from strategies.conversation.census import Census

logger = logging.getLogger("fedsynth")

NAME = "last.pt"


@dataclass
class Checkpoint:
    """Where a run stands. Random numbers need no state: every generator is derived from seed, purpose and round.

    Attributes:
        round: number of the last finished round.
        arrays: what the strategy refines, by name.
        strategy: its :meth:`~strategies.base.SynthesisStrategy.state_dict`.
        costs: the costs so far.
        silos: label counts of every silo by name.
    """

    round: int
    arrays: dict[str, torch.Tensor]
    strategy: dict[str, Any]
    costs: dict[str, Any]
    silos: dict[str, list[int]]

    def save(self, folder: Path) -> None:
        """Replace the checkpoint in ``folder``; whenever the process is killed, the old or the new one is whole.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        path = folder / NAME
        with explained_writing(path), atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save({field.name: getattr(self, field.name) for field in fields(self)}, file)
            # Renaming may reach the disk before the content does.
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> Checkpoint | None:
        """Read the checkpoint of a run folder; None if no round was finished.

        Raises:
            UserError: the file is damaged or cannot be read.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            _compare_check_sums(path)
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except OSError as error:
            raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}; make it readable") from error
        except Exception as error:  # whatever torch makes of a damaged file
            raise UserError(f"checkpoint '{path}' is damaged: remove it to start at round 1 ({error})") from error

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


def _compare_check_sums(path: Path) -> None:
    """Refuse flipped bits, which ``torch.load`` would take for weights.

    Raises:
        ValueError: a part of the file is not what was written.
    """
    with zipfile.ZipFile(path) as archive:
        if changed := archive.testzip():
            raise ValueError(f"'{changed}' does not match its check sum")
