"""The files of a model that somebody brings: JSON and safetensors, nothing unpickled, no code, no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsynth.diffusion.pipeline import model_seal
from fedsynth.errors import UserError
from fedsynth.sealed import FOLDER_FILE, SealError, check_folder

CLASSES_FILE = "classes.json"
INDEX_FILE = "model_index.json"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a pipeline folder, or of the folder of a bare network.

    Attributes:
        key: setting that names the folder, for errors.
        folder: as it was given.
        unet: folder of the network.
        roots: where files beside the network are looked for, nearest first.
    """

    key: str
    folder: Path
    unet: Path
    roots: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path, key: str) -> ModelFiles:
        """Return the files of a folder.

        Raises:
            UserError: there is no such folder, or it holds no network.
        """
        if not folder.is_dir():
            raise UserError(f"{key} = '{folder}': there is no such folder: give a diffusers folder on this machine")
        if (folder / "unet" / "config.json").is_file():
            return cls(key, folder, folder / "unet", (folder,))
        if (folder / "config.json").is_file():
            return cls(key, folder, folder, (folder, folder.parent))
        raise UserError(
            f"{key} = '{folder}': holds no network (unet/config.json or config.json): give a folder that a diffusers"
            " pipeline or UNet2DModel wrote with save_pretrained"
        )

    def error(self, problem: str) -> UserError:
        """Return an error that names setting and folder."""
        return UserError(f"{self.key} = '{self.folder}': {problem}")

    def read(self, path: Path) -> Any:
        """Return what a JSON file says.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self.error(f"'{path.name}' cannot be read as JSON ({error}): copy or save the model again") from error

    def read_config(self, path: Path) -> dict[str, Any]:
        """Return the settings in a JSON file.

        Raises:
            UserError: it cannot be read, or holds none.
        """
        config = self.read(path)
        if not isinstance(config, dict):
            raise self.error(f"'{path.name}' holds no settings by name: copy or save the model again")
        return config

    def first(self, *names: str) -> Path | None:
        """Return the first of these files that exists, nearest folder first."""
        candidates = (root / name for root in self.roots for name in names)
        return next((file for file in candidates if file.is_file()), None)

    def check_seal(self) -> None:
        """Compare the files with the checksums that are with a model of our own.

        Raises:
            UserError: one does not match.
        """
        if not (self.folder / FOLDER_FILE).is_file():
            return
        try:
            check_folder(self.folder, model_seal())
        except (OSError, SealError) as error:
            raise self.error(
                f"the model is damaged ({error}): copy it again; if it was changed on purpose, remove its {FOLDER_FILE}"
            ) from error

    def codec(self) -> str:
        """Return the digest of the codec that the model says it has; ``pixels`` where it says nothing."""
        index = self.first(INDEX_FILE)
        return str(self.read_config(index).get("codec", "pixels")) if index else "pixels"

    def class_names(self, count: int) -> list[str] | None:
        """Return the names of the model's classes, in index order; None where nothing says them.

        Args:
            count: rows of its class embeddings.

        Raises:
            UserError: they are no list of 1 to ``count`` different names.
        """
        path = self.first(CLASSES_FILE)
        index = self.first(INDEX_FILE)
        names = self.read(path) if path else self.read_config(index).get("classes") if index else None
        if not names and path is None:
            return None
        if not isinstance(names, list) or not 1 <= len({str(name) for name in names}) == len(names) <= count:
            raise self.error(
                f"{path.name if path else INDEX_FILE} must list 1 to {count} different class names in index"
                f" order, not {names!r}"
            )
        return [str(name) for name in names]
