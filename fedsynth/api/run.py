"""A finished run, read from its folder, and the models that runs save."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from fedsynth.api.pushing import push
from fedsynth.api.quiet import quiet_diffusers
from fedsynth.config import RunConfig
from fedsynth.diffusion import ClassConditionalDDPMPipeline, model_seal
from fedsynth.errors import UserError
from fedsynth.files import parse_json
from fedsynth.output import RunFolder, SyntheticDataset, read_dataset
from fedsynth.output.dataset import PROVENANCE
from fedsynth.sealed import FOLDER_FILE, check_folder

INDEX = "model_index.json"
"""What diffusers has in the folder of every pipeline."""
MODELS = ("generator", "global")
"""Folders of a run's models, the one to sample from first."""


class Run:
    """What a run left in its folder; files are read when they are first asked for.

    A run of this process, of ``fedsynth run`` or of a sweep: all leave the same folder.

    Args:
        path: the run folder.

    Attributes:
        folder: its files.

    Raises:
        UserError: ``path`` is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.open(Path(path).expanduser().absolute())

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @cached_property
    def config(self) -> RunConfig:
        """All settings of the run, the ``"auto"`` ones resolved."""
        return self.folder.read_config()

    @cached_property
    def dataset(self) -> SyntheticDataset:
        """The synthetic set: ``images`` uint8 (N, H, W, C), ``labels`` int64 (N,), ``classes``, ``provenance``.

        Raises:
            UserError: the run did not finish, the set is damaged, or every silo has a set of its own.
        """
        sets = self.datasets
        if "" not in sets:
            raise UserError(
                f"'{self.path}' holds a dataset of every silo: choose from Run.datasets ({', '.join(sets)})"
            )
        return sets[""]

    @cached_property
    def datasets(self) -> dict[str, SyntheticDataset]:
        """All synthetic sets, by folder: that of the silo with strategy ``local``, "" for the only one otherwise.

        Raises:
            UserError: the run did not finish, or a set is damaged.
        """
        root = self.folder.synthetic
        if (root / PROVENANCE).is_file():
            return {"": read_dataset(root)}
        folders = sorted(path.parent for path in root.glob(f"*/{PROVENANCE}"))
        if not folders:
            raise self._unfinished("synthetic/")
        return {folder.name: read_dataset(folder) for folder in folders}

    @cached_property
    def results(self) -> dict[str, Any]:
        """Costs and measures, as ``results.json`` has them.

        Raises:
            UserError: the run did not finish, or the file is damaged.
        """
        results = self.folder.read_results()
        if results is None:
            raise self._unfinished(self.folder.results.name)
        return results

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was measured in every round, the first first.

        Raises:
            UserError: the file is damaged.
        """
        return self.folder.read_metrics()

    @property
    def report(self) -> Path:
        """The report, a page of HTML.

        Raises:
            UserError: the run did not finish.
        """
        if not self.folder.report.is_file():
            raise self._unfinished(self.folder.report.name)
        return self.folder.report

    @cached_property
    def model(self) -> ClassConditionalDDPMPipeline:
        """The run's model, see :func:`from_pretrained`: the generator if one was trained, else the global model.

        Raises:
            UserError: the run has none, or it is damaged.
        """
        return from_pretrained(self.path)

    @property
    def model_folder(self) -> Path:
        """Folder of :attr:`model`.

        Raises:
            UserError: the run has none, or it is damaged.
        """
        folder = _model_folder(self.path)
        _check_seal(folder)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        models: bool = False,
        license: str = "",
        despite_verdict: bool = False,
        token: str | None = None,
    ) -> list[str]:
        """Push the synthetic set, and if asked for the model, to the hub, see :func:`fedsynth.api.pushing.push`."""
        return push(
            self,
            repo_id,
            private=private,
            models=models,
            license=license,
            despite_verdict=despite_verdict,
            token=token,
        )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _unfinished(self, missing: str) -> UserError:
        return UserError(
            f"the run folder '{self.path}' has no {missing}: its run did not finish; resume it"
            f" (fedsynth.synthesise(resume={str(self.path)!r})), or give another"
        )


def from_pretrained(path: str | Path) -> ClassConditionalDDPMPipeline:
    """Load a model that a run, a silo or ``fedsynth train-local`` saved, on the CPU.

    It is called with the classes of the images to draw, ``model(["cat", "dog"]).images``, and is a diffusers pipeline:
    ``to``, ``unet``, ``scheduler`` and ``save_pretrained`` are there. diffusers alone opens its parts, such as
    ``UNet2DModel.from_pretrained(path, subfolder="unet")``. Nothing is downloaded or unpickled.

    Args:
        path: folder of the model, or of a run, whose generator goes before its global model.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    folder = _model_folder(Path(path).expanduser())
    _check_seal(folder)
    try:
        made = parse_json((folder / INDEX).read_text(encoding="utf-8")).get("_class_name")
        if made != ClassConditionalDDPMPipeline.__name__:
            raise UserError(f"model '{folder}' is a {made}: open it with diffusers.DiffusionPipeline.from_pretrained")
        with quiet_diffusers():
            pipeline = ClassConditionalDDPMPipeline.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
    except UserError:
        raise
    except (OSError, ValueError, AttributeError) as error:  # SealError is a ValueError
        raise UserError(f"model '{folder}' is damaged ({error}): copy or save it again") from error
    assert isinstance(pipeline, ClassConditionalDDPMPipeline)
    return pipeline


def _check_seal(folder: Path) -> None:
    """Compare a model's files with their checksums, where it has some.

    Raises:
        UserError: they are damaged.
    """
    try:
        if (folder / FOLDER_FILE).is_file():
            check_folder(folder, model_seal())
    except (OSError, ValueError) as error:  # SealError is a ValueError
        raise UserError(f"model '{folder}' is damaged ({error}): copy or save it again") from error


def _model_folder(path: Path) -> Path:
    if (path / INDEX).is_file():
        return path
    run = RunFolder(path)
    if not run.config.is_file():
        raise UserError(f"'{path}' is no folder of a model (it holds no {INDEX}), and no run folder: give one")
    for name in MODELS:
        if (run.models / name).is_dir():
            return run.models / name
    strategy = run.read_config().run.strategy
    raise UserError(
        f"the run '{path}' saved no model: strategy = '{strategy}' leaves none without generator-steps > 0, or the run"
        " did not finish"
    )
