"""What a finished run may give to the Hugging Face hub: the synthetic set, and its model only if that is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, Protocol

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from fedsynth.output import (
    RunFolder,
    SyntheticDataset,
    describe_dataset,
    findings_on_publishing,
    folder_names,
    model_card,
    why_not_publish,
)
from fedsynth.output.dataset import METADATA, PROVENANCE, image_files
from fedsynth.sealed import FOLDER_FILE
from fedsynth.text import printable

CARD = "README.md"
_MODEL_FILES = re.compile(
    r"model_index\.json|conditions\.safetensors|pytorch_lora_weights\.safetensors|[\w-]+/[\w.-]+\.(json|safetensors)"
)


class FinishedRun(Protocol):
    """What is asked of a run, see :class:`fedsynth.Run`."""

    folder: RunFolder

    @property
    def dataset(self) -> SyntheticDataset:
        """The synthetic set."""

    @property
    def results(self) -> dict[str, Any]:
        """Costs and measures."""

    @property
    def report(self) -> Path:
        """The report."""

    @property
    def model_folder(self) -> Path:
        """Folder of the model to draw from."""


@dataclass(frozen=True)
class Upload:
    """A repository of the hub, and what it gets.

    Attributes:
        repo_id: ``name/set``.
        repo_type: ``dataset`` or ``model``.
        folder: the files on this machine.
        files: bytes of each by its path in the folder; of a model without its card.
        card: of a model, which has none in its folder.
    """

    repo_id: str
    repo_type: Literal["dataset", "model"]
    folder: Path
    files: Mapping[str, int] = field(default_factory=dict)
    card: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file that the repository gets, by name."""
        return {**self.files, **({CARD: len(self.card.encode())} if self.card else {})}


def planned_uploads(
    run: FinishedRun, repo_id: str, *, models: bool = False, license: str = "", despite_verdict: bool = False
) -> list[Upload]:
    """Check what would be pushed, and list it; arguments as of :func:`push`. Nothing is sent or changed.

    Raises:
        UserError: as :func:`push`.
    """
    _check(run, repo_id, license)
    dataset = _licensed(run.dataset, license)
    _refuse_paths(dataset.provenance)
    findings = findings_on_publishing(run.results)
    warned = [why_not_publish(findings, "images"), why_not_publish(findings, "models") if models else ""]
    if any(warned) and not despite_verdict:
        raise UserError(
            f"the run's verdict: {'; '.join(filter(None, warned))}. Whoever answers for the images decides:"
            " --despite-verdict pushes all the same"
        )
    known = {*image_files(dataset, folder_names(dataset.classes)), METADATA, PROVENANCE, CARD}
    uploads = [Upload(repo_id, "dataset", run.folder.synthetic, _files(run.folder.synthetic, known))]
    if models:
        folder = run.model_folder
        files = _files(folder, {path for path in _paths(folder) if _MODEL_FILES.fullmatch(path)} | {FOLDER_FILE})
        card = model_card(dataset.classes, dataset.provenance, repo_id, (folder / "transformer").is_dir())
        uploads.append(Upload(repo_id, "model", folder, files, card))
    return uploads


def push(
    run: FinishedRun,
    repo_id: str,
    *,
    private: bool = False,
    models: bool = False,
    license: str = "",
    despite_verdict: bool = False,
    token: str | None = None,
) -> list[str]:
    """Push a run's synthetic set with its card, and if asked for the model that :attr:`Run.model` loads.

    Args:
        run: a finished run.
        repo_id: ``name/set``; a repository that exists gets another commit. A model goes to the model repository of
            that name.
        private: whether repositories that are made now are.
        models: whether the model is pushed, too.
        license: the hub's word for the licence, such as ``cc-by-4.0``, in place of the run's; it is written to the
            set's card first.
        despite_verdict: whether to push what the run's verdict warns of.
        token: of the hub; None: the one that ``hf auth login`` keeps, or ``HF_TOKEN``.

    Returns:
        Addresses of the commits.

    Raises:
        UserError: the run did not finish, has several sets or no model, its card says paths of this machine, its
            folders hold what is no part of them, the verdict warns, or a name is none.
        RunError: the hub did not take it.
    """
    uploads = planned_uploads(run, repo_id, models=models, license=license, despite_verdict=despite_verdict)
    if license:
        describe_dataset(_licensed(run.dataset, license), run.folder.synthetic)
    api = HfApi(token=token, library_name="fedsynth")
    try:
        return [_send(api, upload, private) for upload in uploads]
    except Exception as error:  # of the hub's client, its HTTP library and the network
        raise RunError(
            f"the hub did not take '{repo_id}': {printable(error, 300)}; 'hf auth login' signs in, and the same command"
            " goes on"
        ) from error


def _send(api: HfApi, upload: Upload, private: bool) -> str:
    api.create_repo(upload.repo_id, repo_type=upload.repo_type, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=upload.repo_id,
        repo_type=upload.repo_type,
        folder_path=str(upload.folder),
        commit_message="Synthetic images" if upload.repo_type == "dataset" else "Model",
    )
    if upload.card:
        commit = api.upload_file(
            path_or_fileobj=upload.card.encode(),
            path_in_repo=CARD,
            repo_id=upload.repo_id,
            repo_type=upload.repo_type,
            commit_message="Card",
        )
    return str(commit.commit_url)


def _check(run: FinishedRun, repo_id: str, license: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"repo-id = '{repo_id}': {error}") from None
    if license:
        RunConfig.from_run_config({"license": license})
    run.report  # noqa: B018, which says so if the run did not finish


def _licensed(dataset: SyntheticDataset, license: str) -> SyntheticDataset:
    if not license:
        return dataset
    return replace(dataset, provenance={**dataset.provenance, "license": license})


def _refuse_paths(provenance: Mapping[str, Any]) -> None:
    """Refuse what runs of earlier versions wrote down of their machine."""
    for key, value in provenance.get("settings", {}).items():
        text = str(value)
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
            raise UserError(
                f"{PROVENANCE} says a path of this machine, {key} = '{text}': an earlier version wrote it; make the run"
                " again, or take it out there and in the card"
            )


def _files(folder: Path, known: set[str]) -> dict[str, int]:
    """Return the bytes of every file of a folder.

    Raises:
        UserError: one is not known, or leads elsewhere.
    """
    for path in sorted(_paths(folder)):
        if path not in known or (folder / path).is_symlink():
            raise UserError(f"'{folder / path}' is no part of what a run leaves: take it out of the folder first")
    return {path: (folder / path).stat().st_size for path in sorted(_paths(folder))}


def _paths(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in _below(folder)}


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
