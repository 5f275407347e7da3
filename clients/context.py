"""The silo behind a message: its configuration, images, folders and name, parsed once per message."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context

from clients.privacy_account import PrivacyAccount
from clients.released import ImageFiles, ReleasedAnswers
from clients.silo_cache import SiloCache
from fedsynth.config import AUTO, RunConfig, Scalar
from fedsynth.config.types import FEW_LABELS
from fedsynth.data import (
    Federation,
    ImageCache,
    Silo,
    configured_range,
    few_labels_silo,
    folder_silo,
    image_folder_spec,
    largest_held_out_share,
    list_images,
    load_federation,
)
from fedsynth.diffusion import Codec, codec_of, latents_kept_in, settle_base_model
from fedsynth.diffusion.latent_files import LATENTS_BYTES
from fedsynth.errors import FilesError, UserError
from fedsynth.messages import Sender
from fedsynth.policy import AGGREGATOR_ANSWERS, SiloPolicy, read_policy
from fedsynth.privacy import Mechanism
from fedsynth.privacy.spending import note_file
from fedsynth.roles import AGGREGATOR
from fedsynth.spec import ImageSpec
from fedsynth.text import LONGEST_SILO_NAME, check_silo_name, folder_of_name, printable

LEAST_FREE_BYTES = 2**20
"""A disk with fewer free bytes counts as full: torch and safetensors do not say why they could not write."""
DECODED = "images"
"""Folder of decoded images and of latents in the state folder; it may be removed at any time between runs."""

HOLDS_NO_IMAGES = ImageSpec(1, 1, ())
"""What an aggregator says of images."""

_silos: dict[bool, SiloCache[Silo]] = {each_alone: SiloCache() for each_alone in (False, True)}
_files: SiloCache[ImageFiles] = SiloCache()


@lru_cache(maxsize=2)
def _federation(config: RunConfig) -> Federation:
    """The simulated silos' dataset, read once per process: one Ray actor serves many clients."""
    return load_federation(config)


@lru_cache(maxsize=4)
def _config(run_config: tuple[tuple[str, type, Scalar], ...]) -> RunConfig:
    """Parse what every message of a run repeats. With the types, since ``1 == 1.0 == True``."""
    return RunConfig.from_run_config({key: value for key, _, value in run_config})


class SiloContext:
    """A Flower context as handlers see it.

    Args:
        context: Flower's, of one message.

    Attributes:
        config: the run's configuration; ``autoencoder``, ``init-from`` and ``base-model`` are a real silo's own,
            ``autoencoder-path``, ``init-from`` and ``base-model`` of its node config.
        name: the silo's, in logs and answers.
        sender: how its answers say who gives them.
        simulated: whether the silo is a partition of a named dataset, or an aggregator beside such silos.
        is_aggregator: whether it holds no images, and aggregates the silos' answers.
        state: its own folder, see :func:`state_folder`.
        model_path: folder of the silo's pretrained model (``model-path`` of the node config), or None.
        sum_keys: of a real silo, the file of its own keys for secure sums and that of the others' public ones
            (``sum-keys-path`` and ``known-keys-path`` of the node config), or None.
        group_column: column of the silo's own table, such as patient, whose groups its hold-out never splits
            (``group-column`` of the node config); empty: none. A run cannot name one: it would learn of any column.
        deadline: ``time.monotonic()`` at which the policy has work on this message end.
        deadline_field: field of the policy that sets it.
        policy: what the silo allows: the file ``policy-path`` of the node config, otherwise the default; a
            simulated silo, which belongs to whoever runs the server, allows everything.

    Raises:
        UserError: the configuration or the policy cannot be read, the name is none that others could show, or the run
            works in latents or starts from a public or base model and a real silo has no autoencoder or no such model.
    """

    def __init__(self, context: Context) -> None:
        self._flower = context
        node = context.node_config
        self.name = silo_name(context)
        check_silo_name(self.name)
        self.simulated = "partition-id" in node and "data-path" not in node
        self.is_aggregator = _is_aggregator(context)
        run_config = tuple((key, type(value), value) for key, value in context.run_config.items())
        self.config = settle_base_model(self._with_own_folders(_config(run_config)))
        by_partition = self.simulated and not self.is_aggregator
        self.sender = Sender.of_partition(int(node["partition-id"])) if by_partition else Sender(0, self.name)
        self.state = state_folder(context)
        given = str(node.get("model-path", ""))
        self.model_path = Path(given).expanduser() if given else None
        own, known = str(node.get("sum-keys-path", "")), str(node.get("known-keys-path", ""))
        self.sum_keys = (Path(own).expanduser(), Path(known).expanduser()) if own and known else None
        self.group_column = str(node.get("group-column", ""))
        self.deadline, self.deadline_field = math.inf, "compute_seconds_per_run"
        self.policy = SiloPolicy.unlimited() if self.simulated else _own_policy(str(node.get("policy-path", "")))
        if self.is_aggregator and not self.simulated and not node.get("policy-path"):
            self.policy = SiloPolicy(answers=AGGREGATOR_ANSWERS)

    @property
    def run_and_node(self) -> tuple[int, int]:
        """Run and node: what a process keeps of a silo is kept under this."""
        return self._flower.run_id, self._flower.node_id

    @property
    def largest_holdout(self) -> float:
        """Share of the images, 0 to 1, that is held out at most."""
        return largest_held_out_share(self.config.data.holdout_fraction, bool(self.group_column))

    def images(self, spec: ImageSpec) -> Silo:
        """Return the silo's images, opened once per process: its folder, or its partition of the named dataset.

        Raises:
            UserError: there is neither, or the images cannot be used.
        """
        alone = self.config.private or self.privacy_account().bounded
        return _silos[alone].get(self.run_and_node, lambda: self._open(spec, alone))

    def keeping_latents(self, spec: ImageSpec) -> AbstractContextManager[Codec]:
        """Return a block's codec that finds latents of the silo's images on its disk, and leaves there what is new."""
        most = min(LATENTS_BYTES, 1e6 * self.policy.limit("disk_mb"))
        return latents_kept_in(self.state / DECODED, codec_of(self.config, spec), most)

    def released(self, spec: ImageSpec) -> ReleasedAnswers:
        """Return what a real silo has told of the images in its folder, listed once per process.

        Raises:
            UserError: they cannot be listed.
        """
        return ReleasedAnswers(self.image_files(spec), self.state, self.policy, self.privacy_account())

    def image_files(self, spec: ImageSpec) -> ImageFiles:
        """Return the files in a real silo's folder, listed once per process; ``key`` names their state.

        Raises:
            UserError: they cannot be listed.
        """
        path = self._data_path().expanduser()
        with self._unnamed_elsewhere():
            return _files.get(self.run_and_node, lambda: _image_files(path, spec))

    def before_private_steps(self, spec: ImageSpec) -> Callable[[Mechanism], None]:
        """Return what a private training calls with all its steps before the first; a simulated silo has no account.

        Raises:
            UserError: the images cannot be listed.
        """
        if self.simulated:
            return lambda mechanism: None
        return self.privacy_account().before_steps(self.image_files(spec).key)

    def before_summed_step(self, spec: ImageSpec) -> Callable[[Mechanism, Mechanism], None]:
        """Return what is called before each answer to a secure sum of gradients, as :meth:`before_private_steps`.

        Raises:
            UserError: the images cannot be listed.
        """
        if self.simulated:
            return lambda server, public: None
        return self.privacy_account().before_summed_step(self.image_files(spec).key)

    def privacy_account(self) -> PrivacyAccount:
        """Return what a real silo's images have spent; where it stands is noted beside the policy, if there is one."""
        policy = str(self._flower.node_config.get("policy-path", ""))
        note = note_file(Path(policy).expanduser(), self.state.name) if policy else None
        return PrivacyAccount(self.state, self.policy, str(self._flower.run_id), note)

    def told_held_out(self, spec: ImageSpec) -> int | None:
        """Return how many images a real silo says are held out; None of a simulated one, which tells it exactly.

        Raises:
            UserError: as :meth:`released`.
        """
        fraction = self.config.data.holdout_fraction
        return None if self.simulated else self.released(spec).held_out_number(spec.classes, fraction)

    def describe(self) -> ImageSpec:
        """Return format and class names of the silo's own folder; ``image-size``, if set, overrides its size.

        Raises:
            UserError: it has no folder of its own, or that one cannot be used.
        """
        if self.is_aggregator or (self.simulated and self.config.num_aggregators):
            # Simulated silos are asked for their role alone.
            return HOLDS_NO_IMAGES
        if "data-path" not in self._flower.node_config:
            raise UserError("dataset = 'silos' needs 'data-path' in the node config: start with 'fedsynth silo start'")
        size = self.config.data.image_size
        with self._unnamed_elsewhere():
            spec = image_folder_spec(self._data_path(), None if size == AUTO else size)
        if not spec.classes and not self._few_labels:
            raise UserError(
                f"all images of this silo are unlabelled, and strategy = '{self.config.run.strategy}' learns from"
                " labels"
            )
        return spec

    def check_deadline(self) -> None:
        """Refuse to go on with a message that takes longer than the policy allows.

        Raises:
            PolicyError: it does.
        """
        if time.monotonic() > self.deadline:
            self.policy.refuse(self.deadline_field, "this message takes longer than what was left")

    def note(self, name: str, record: ConfigRecord | ArrayRecord) -> None:
        """Keep a record for later messages of this run."""
        self._flower.state[name] = record

    def noted(self, name: str) -> ConfigRecord | ArrayRecord | None:
        """Return the record that :meth:`note` kept under a name; None if there is none."""
        record = self._flower.state.get(name)
        return record if isinstance(record, ConfigRecord | ArrayRecord) else None

    def _with_own_folders(self, config: RunConfig) -> RunConfig:
        """Replace the server's paths, which name nothing at a real silo."""
        model, node = config.model, self._flower.node_config
        if self.simulated or not (model.autoencoder or model.init_from or model.base_model):
            return config
        own: dict[str, str] = {}
        if model.autoencoder and not own.setdefault("autoencoder", str(node.get("autoencoder-path", ""))):
            raise UserError(
                "codec = 'autoencoder': the run works in latents, and this silo has no autoencoder: start it with"
                " --autoencoder-path, the folder of the run's autoencoder there"
            )
        if model.init_from and not own.setdefault("init_from", str(node.get("init-from", ""))):
            raise UserError(
                "init-from: the run's networks start from a public model, and this silo has none: start it with"
                " --init-from, the folder of the run's public model there"
            )
        if model.base_model and not own.setdefault("base_model", str(node.get("base-model", ""))):
            raise UserError(
                "base-model: the run fine-tunes a base model, and this silo has none: start it with --base-model, the"
                " folder of the run's base model there"
            )
        return config.model_copy(update={"model": model.model_copy(update=own)})

    def _open(self, spec: ImageSpec, each_alone: bool) -> Silo:
        node = self._flower.node_config
        config = self.config
        if "data-path" in node:
            reading: dict[str, Any] = {
                "skip_bad_images": config.data.skip_bad_images,
                "value_range": configured_range(config.data),
                "first_page_only": config.data.first_page_only,
                "group_column": self.group_column,
                "cache": ImageCache(self.state / DECODED, single=True, most_bytes=1e6 * self.policy.limit("disk_mb")),
            }
            place, split = (self._data_path(), self.name), (config.data.holdout_fraction, config.run.seed)
            with self._unnamed_elsewhere():
                if self._few_labels:
                    return few_labels_silo(*place, spec, *split, **reading)
                return folder_silo(
                    *place,
                    *split,
                    image_size=spec.size,
                    channels=spec.channels,
                    classes=spec.classes,
                    each_alone=each_alone,
                    **reading,
                )
        if "partition-id" in node:
            partition = int(node["partition-id"])
            if partition >= config.run.num_clients:
                raise UserError(
                    f"num-clients = {config.run.num_clients}, but there is a partition {partition}:"
                    " set num-supernodes and num-clients to the same number"
                )
            return _federation(config).silo(partition, config)
        raise UserError(
            "node config holds neither 'data-path' nor 'partition-id': start with --node-config 'data-path=\"…\"'"
        )

    @property
    def _few_labels(self) -> bool:
        return self.config.run.strategy in FEW_LABELS

    def _data_path(self) -> Path:
        return Path(str(self._flower.node_config["data-path"]))

    @contextmanager
    def _unnamed_elsewhere(self) -> Iterator[None]:
        """Keep errors that name something in the folder of images at the silo: it may be named after a patient."""
        try:
            yield
        except FilesError:
            raise
        except UserError as error:
            if f"{self._data_path().expanduser()}{os.sep}" not in str(error):
                # A cause that is an OSError would be taken for one of the state folder.
                raise UserError(str(error)) from error
            elsewhere = "the folder of images cannot be used: the silo's log names what is wrong in it"
            raise FilesError(str(error), elsewhere) from error

    @contextmanager
    def explained_state(self) -> Iterator[None]:
        """Turn errors of the block into one that names the state folder, if it is full or cannot be written.

        Raises:
            UserError: an ``OSError`` of the block, or whatever a library made of a full disk.
        """
        try:
            yield
        except OSError as error:
            raise self._state_error(error.strerror or str(error)) from error
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise self._state_error(error.__cause__.strerror or str(error)) from error
            raise
        except Exception as error:
            if self.state.exists() and shutil.disk_usage(self.state).free < LEAST_FREE_BYTES:
                raise self._state_error("no space left on that disk") from error
            raise

    def _state_error(self, reason: str) -> UserError:
        return UserError(
            f"state folder '{self.state}': {reason}: make room there, or start the silo with another --state-path"
        )


def _image_files(path: Path, spec: ImageSpec) -> ImageFiles:
    listing = list_images(path, spec.classes)
    return ImageFiles(path, listing.files, listing.unlabelled or ())


def _own_policy(path: str) -> SiloPolicy:
    return read_policy(Path(path).expanduser()) if path else SiloPolicy()


def is_real(context: Context) -> bool:
    """Return whether a node belongs to somebody else than the run's server: it has images, or aggregates."""
    node = context.node_config
    return "data-path" in node or (node.get("role") == AGGREGATOR and "partition-id" not in node)


def _is_aggregator(context: Context) -> bool:
    """Return whether a node aggregates: by its own word, or by a partition beyond those of the simulated silos."""
    node, run = context.node_config, context.run_config
    if "partition-id" not in node or "data-path" in node:
        return node.get("role") == AGGREGATOR
    return run.get("aggregators") == "nodes" and int(node["partition-id"]) >= int(run.get("num-clients", 0))


def silo_name(context: Context) -> str:
    """Return a silo's name: ``silo-name`` of the node config, its folder, or ``silo-<partition-id>``.

    A simulated aggregator is ``aggregator-<number>``.
    """
    node = context.node_config
    if "silo-name" in node:
        return str(node["silo-name"])
    if "data-path" in node:
        return Path(str(node["data-path"])).name
    if "partition-id" in node and _is_aggregator(context):
        return f"{AGGREGATOR}-{int(node['partition-id']) - int(context.run_config['num-clients'])}"
    return f"silo-{node['partition-id']}" if "partition-id" in node else f"node-{context.node_id}"


def shown_name(context: Context) -> str:
    """Return :func:`silo_name` as logs show it, also where it is refused."""
    return printable(silo_name(context), LONGEST_SILO_NAME)


def state_folder(context: Context) -> Path:
    """Return a silo's own folder: below ``state-path`` of its node config.

    Without one, it is below ``state-dir``: of the run for a simulated silo, but the default, in the SuperNode's working
    directory, for one with images of its own. There the server names no path.
    """
    node = context.node_config
    named = "" if is_real(context) else context.run_config.get("state-dir", "")
    root = node.get("state-path", "") or named or RunConfig().run.state_dir
    return Path(str(root)).absolute() / folder_of_name(silo_name(context))
