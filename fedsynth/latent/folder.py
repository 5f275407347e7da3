"""A local folder that holds a network: JSON and safetensors only, nothing unpickled, no code, no network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedsynth.errors import UserError
from fedsynth.files import as_json, parse_json
from fedsynth.text import printable
from fedsynth.weight_files import read_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

MAX_JSON_BYTES = 2**16
MAX_ENTRIES = 16
"""Entries of a list among the settings: as many resolutions as a network can have."""
MAX_LAYERS = 32
MAX_NUMBER = 10**6
_LAYERS = ("layers_per_block", "num_layers", "num_encoder_blocks", "num_decoder_blocks", "transformer_layers_per_block")


class ModelFolder:
    """The folder of one network of diffusers.

    Args:
        folder: where its files are.
        given: what errors begin with: the setting and the path that was given.
        noun: what errors call the network, such as ``the autoencoder``.
    """

    def __init__(self, folder: Path, given: str, noun: str) -> None:
        self.folder = folder
        self.given = given
        self.again = f"copy or save {noun} again"
        self._noun = noun

    def error(self, problem: str) -> UserError:
        """Return an error that names setting and folder."""
        return UserError(f"{self.given}: {problem}")

    def misfit(self, error: Exception) -> UserError:
        """Return an error for settings and weights that do not go together, as ``error`` of diffusers says."""
        return self.error(f"'{CONFIG_FILE}' and '{WEIGHTS_FILE}' do not fit ({first_line(error)}): {self.again}")

    def check_is_folder(self) -> None:
        """Refuse what is no folder on this machine.

        Raises:
            UserError: it is none.
        """
        if not self.folder.is_dir():
            raise self.error("there is no such folder: give a folder on this machine; nothing is downloaded")

    def found(self) -> str:
        """Return the first names in the folder, for errors."""
        names = sorted(path.name for path in self.folder.iterdir())
        return ", ".join(map(repr, names[:5])) + ", …" * (len(names) > 5) or "nothing"

    def settings(self, name: str = CONFIG_FILE) -> dict[str, Any]:
        """Return what a JSON file of the folder says by name.

        Raises:
            UserError: it is absent, too long, damaged, or no settings by name.
        """
        try:
            with (self.folder / name).open("rb") as file:
                content = file.read(MAX_JSON_BYTES + 1)
            if len(content) > MAX_JSON_BYTES:
                raise ValueError(f"longer than {MAX_JSON_BYTES} bytes")
            settings = parse_json(content)
        except (OSError, ValueError, RecursionError) as error:
            raise self.error(f"'{name}' cannot be read as JSON ({error}): {self.again}") from error
        if not isinstance(settings, dict):
            raise self.error(f"'{name}' holds no settings by name: {self.again}")
        return settings

    def weights_file(self, name: str = WEIGHTS_FILE) -> Path:
        """Return the path of a safetensors file.

        Raises:
            UserError: there is none of that name.
        """
        path = self.folder / name
        if not path.is_file():
            if variants := sorted(self.folder.glob(f"{path.stem}.*{path.suffix}")):
                raise self.error(
                    f"holds no '{name}'; '{printable(variants[0].name)}' is a variant: rename it to '{name}', or save"
                    f" {self._noun} without one"
                )
            raise self.error(
                f"holds no '{name}' (found {self.found()}); pickled weights are not read, as they can run code:"
                f" save {self._noun} with safe_serialization=True"
            )
        return path

    def weights(self, name: str = WEIGHTS_FILE) -> dict[str, torch.Tensor]:
        """Return the tensors of a safetensors file by name.

        Raises:
            UserError: it is absent or damaged.
        """
        path = self.weights_file(name)
        try:
            return read_weights(path)
        except ValueError as error:
            raise self.error(f"{error}: {self.again}") from error

    def build(
        self,
        network_class: Any,
        settings: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor],
        left_out: tuple[str, ...] = ("sample_size",),
    ) -> tuple[Any, dict[str, Any]]:
        """Build a network from what the folder says.

        Args:
            network_class: of diffusers.
            settings: of ``config.json``; what the class does not know is passed over.
            weights: by name.
            left_out: settings that say nothing of the network.

        Returns:
            The network with its weights, and the settings that are not at the class's default.

        Raises:
            UserError: they do not fit each other, or would take for ever to build.
        """
        signature = inspect.signature(network_class.__init__).parameters
        known = {name: value for name, value in settings.items() if name in signature and name not in left_out}
        for name, value in known.items():
            self._check_setting(name, value)
        try:
            with torch.device("meta"):  # no memory is taken for what the settings describe: the weights are the file's
                network = network_class(**known)
            network.load_state_dict(weights, strict=True, assign=True)
        except Exception as error:  # whatever a class of diffusers makes of such settings
            raise self.misfit(error) from error
        changed = {name: value for name, value in known.items() if value != as_json(signature[name].default)}
        return network, changed

    def _check_setting(self, name: str, value: Any) -> None:
        """Refuse what would take for ever to build; what is no setting of the class, the class refuses."""
        values = value if isinstance(value, list) else [value]
        most = MAX_LAYERS if name in _LAYERS else MAX_NUMBER
        if len(values) > MAX_ENTRIES:
            raise self.error(
                f"{name} in '{CONFIG_FILE}' has {len(values)} entries, at most {MAX_ENTRIES}: {self.again}"
            )
        for entry in values:
            if isinstance(entry, int | float) and not -most <= entry <= most:
                raise self.error(f"{name} in '{CONFIG_FILE}' must be {most} at most: {self.again}")
            if not isinstance(entry, int | float | str | None):
                raise self.error(f"{name} in '{CONFIG_FILE}' is no number or word: {self.again}")


def first_line(error: Exception) -> str:
    """Return what torch says first of several lines that name every weight."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines[:2]) or type(error).__name__, 200)
