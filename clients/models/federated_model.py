"""A silo's copy of the federated model: what the server sends, and what the silo keeps to itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedsynth.diffusion.adapters import AdaptedUNet
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.errors import UserError
from fedsynth.files import atomic_file
from fedsynth.sealed import Seal, SealError
from fedsynth.sealed_tensors import read_tensors, tensor_metadata

Tensors = Mapping[str, torch.Tensor]

FILES_KEPT = 3
"""The newest, and those before it for a server that repeats its last round, or the one before if its newest checkpoint
is damaged."""


class PersonalTensors:
    """The personal tensors of the federated model, which stay in the silo: one file per round.

    Args:
        state: the silo's own state folder.
        run_token: names the run, the same when it is resumed.

    Raises:
        UserError: the token is not a plain name.
    """

    def __init__(self, state: Path, run_token: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", run_token):
            raise UserError(
                f"run-token = '{run_token}': must be letters, digits, '-' and '_', and is needed when parts of the"
                " model stay in the silo: start the run again with an up-to-date server"
            )
        self._folder = state / "personal" / run_token

    def before(self, server_round: int) -> dict[str, torch.Tensor]:
        """Load what was kept after the last round before ``server_round``; empty if the silo took part in none.

        Raises:
            UserError: the file is damaged, or has made room for those of later rounds.
        """
        rounds = self._rounds()
        # A lone file is of the silo's first round: nothing can have been removed before it.
        if server_round > 1 and len(rounds) >= FILES_KEPT and rounds[0] >= server_round:
            raise UserError(
                f"server-round = {server_round}: '{self._folder}' only holds rounds {rounds}:"
                f" resume the run at a round > {rounds[0]}, or start a new run"
            )
        return self._newest(server_round - 1)

    def after(self, server_round: int) -> dict[str, torch.Tensor]:
        """Load what was kept after ``server_round``, or after the last round before it that the silo took part in.

        Raises:
            UserError: it took part in none, or the file is damaged.
        """
        kept = self._newest(server_round)
        if not kept:
            raise UserError(
                f"server-round = {server_round}: '{self._folder}' holds nothing of that round or an earlier one:"
                " the silo must take part in a round before its model is used"
            )
        return kept

    def keep(self, server_round: int, tensors: Tensors) -> None:
        """Write what stays in the silo after ``server_round``, and remove all but the newest files.

        Later rounds than this one go too: the server has gone back and makes them anew.
        """
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_file(self._file(server_round)) as temporary:
            save_file(kept, temporary, tensor_metadata(kept, self._seal(server_round)))
        rounds = self._rounds()
        newest = [number for number in rounds if number <= server_round][-FILES_KEPT:]
        for number in set(rounds).difference(newest):
            self._file(number).unlink()

    def _newest(self, last_round: int) -> dict[str, torch.Tensor]:
        past = [number for number in self._rounds() if number <= last_round]
        if not past:
            return {}
        path = self._file(past[-1])
        try:
            return read_tensors(path, self._seal(past[-1]))
        except (OSError, SealError) as error:
            raise UserError(f"weights '{path}' are damaged: start a new run ({error})") from error

    def _seal(self, server_round: int) -> Seal:
        silo, run = self._folder.parents[1].name, self._folder.name
        return Seal("part of a federated model", 1, f"{silo}, run {run}, round {server_round}")

    def _file(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:05d}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors"))


class FederatedModel:
    """The initial network, overwritten by the silo's personal tensors and by those it received.

    Args:
        initial: the run's initial network, which takes the weights.
        received: the exchanged tensors, by state dict name.
        state: the silo's own state folder.
        run_token: names the run; may be None when every tensor is received.

    Raises:
        UserError: received tensors that do not fit the network, or a bad or missing token.
    """

    def __init__(self, initial: Denoiser, received: Tensors, state: Path, run_token: str | None) -> None:
        self._unet = initial
        self._load(received)
        self._personal_names = initial.state_dict().keys() - received.keys()
        named = run_token is not None or self._personal_names
        personal = PersonalTensors(state, run_token or "") if named else None
        self._personal = personal if self._personal_names else None

    def before(self, server_round: int, has_trained: bool = False) -> Denoiser:
        """Return the network that ``server_round`` starts from.

        Args:
            server_round: 1 for the first.
            has_trained: whether the server has had an answer of this silo in an earlier round.

        Raises:
            UserError: as :meth:`PersonalTensors.before`, and when a silo that has trained kept nothing.
        """
        if self._personal is None:
            return self._unet
        kept = self._personal.before(server_round)
        if has_trained and not kept:
            raise UserError(
                f"server-round = {server_round}: this silo's own part of the model is not in its state folder"
                " (state-dir, or state-path of the node config): give the folder of the earlier rounds"
            )
        self._load_kept(kept)
        return self._unet

    def after(self, server_round: int) -> Denoiser:
        """Return the network that ``server_round`` ended with.

        Raises:
            UserError: as :meth:`PersonalTensors.after`.
        """
        if self._personal is not None:
            self._load_kept(self._personal.after(server_round))
        return self._unet

    def keep(self, server_round: int) -> None:
        """Write the network's tensors that were not received, if there are any."""
        if self._personal is not None:
            state_dict = self._unet.state_dict()
            self._personal.keep(server_round, {name: state_dict[name] for name in self._personal_names})

    def _load_kept(self, kept: Tensors) -> None:
        self._load({name: tensor for name, tensor in kept.items() if name in self._personal_names})

    def _load(self, tensors: Tensors) -> None:
        if isinstance(self._unet, AdaptedUNet):
            try:
                self._unet.load_state_dict(tensors)
            except ValueError as error:
                raise _misfit(str(error)) from error
            return
        expected = self._unet.state_dict()
        for name, tensor in tensors.items():
            if name not in expected:
                raise _misfit(f"there is no layer '{name}'")
            if tensor.shape != expected[name].shape:
                raise _misfit(f"layer '{name}' has shape {tuple(expected[name].shape)}, not {tuple(tensor.shape)}")
        self._unet.load_state_dict(tensors, strict=False)


def _misfit(why: str) -> UserError:
    return UserError(f"weights do not fit the silo's network ({why}): give server and silos the same fedsynth")
