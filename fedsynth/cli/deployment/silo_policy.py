"""``silo policy``: what a policy file says, and what a planned run would get of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fedsynth.cli.deployment.silo_settings import check_folder, check_images
from fedsynth.cli.options import read_toml
from fedsynth.config import AUTO, REAL_SILOS, RunConfig
from fedsynth.errors import UserError
from fedsynth.policy import POLICY_FILE, UNLIMITED, SiloPolicy, read_policy
from fedsynth.spec import ImageSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which policy, and which run."""
    parser.add_argument("--check", type=Path, metavar="FILE", help=f"policy file (default: {POLICY_FILE} of the silo)")
    parser.add_argument("--setting", type=Path, metavar="RUN", help="TOML file of a run's configuration keys")
    parser.add_argument("--data-path", type=Path, help="the silo's images, whose size and classes decide some numbers")
    parser.add_argument(
        "--group-column", default="", help="the silo's column of groups, of which twice the hold-out can be held out"
    )
    parser.add_argument("--autoencoder-path", type=Path, help="the silo's autoencoder, for a run in latents")
    parser.add_argument("--base-model", type=Path, help="the silo's base model, for a run that fine-tunes one")


def check_policy(folder: Path, options: argparse.Namespace) -> int:
    """Print what a policy allows, and what it makes of a run.

    Returns:
        1 if it forbids the run; otherwise 0.

    Raises:
        UserError: policy, setting or images cannot be read.
    """
    path = (options.check or folder / POLICY_FILE).expanduser()
    if options.check is None:
        check_folder(folder)
    if options.data_path is not None:
        check_images(options.data_path)
    policy = read_policy(path)
    if options.setting is None:
        changed = [policy.line(name) for name in SiloPolicy.model_fields if getattr(policy, name) != _default(name)]
        print(f"policy {path}: valid; lines that differ from the default: {len(changed)}")
        print("".join(f"  {line}\n" for line in changed + open_ends(policy)), end="")
        return 0
    return _compare(policy, path, options)


def open_ends(policy: SiloPolicy) -> list[str]:
    """Return in sentences what a policy leaves to the server that no other line of it makes up for."""
    found = []
    if not policy.programs:
        found.append("any program of the server runs here: pin it with programs ('fedsynth silo program' prints it)")
    if policy.privacy_epsilon == UNLIMITED:
        found.append("no ε bounds what is told: set privacy-epsilon")
    return found


def _compare(policy: SiloPolicy, path: Path, options: argparse.Namespace) -> int:
    # Only here: what knows networks takes seconds to import.
    from fedsynth.cli.planned import comparison, planned

    config = _setting(options.setting, options.autoencoder_path, options.base_model)
    # Only here, as above: torchvision.
    from fedsynth.data import largest_held_out_share

    share = largest_held_out_share(config.data.holdout_fraction, bool(options.group_column))
    spec, images = _images(options.data_path, config, share)
    plan, said = planned(config, spec, images, share)
    print(f"policy {path}\nrun {options.setting} asks this silo at most")
    print("\n".join(f"  {line}" for line in said))
    lines, allowed = comparison(policy, plan)
    print("\n".join(lines))
    if plan.noise_queries or plan.images_drawn:
        print("(compared with what the file says: of the lines '…-in-all', earlier runs have used a part)")
    return 0 if allowed else 1


def _setting(path: Path, autoencoder: Path | None, base: Path | None) -> RunConfig:
    try:
        given = {"dataset": REAL_SILOS, **read_toml(path.expanduser(), "configuration keys")}
    except UserError as error:
        raise UserError(f"setting '{path}': {error}") from None
    config = RunConfig.from_run_config(given)
    model, own = config.model, dict[str, str]()
    if model.autoencoder:
        if autoencoder is None:
            raise UserError(
                f"setting '{path}' is of a run in latents: add --autoencoder-path, the silo's copy of its autoencoder"
            )
        own["autoencoder"] = str(autoencoder.expanduser().absolute())
    if model.base_model:
        if base is None:
            raise UserError(
                f"setting '{path}' is of a run that fine-tunes a base model: add --base-model, the silo's copy of it"
            )
        own["base_model"] = str(base.expanduser().absolute())
    return config.model_copy(update={"model": model.model_copy(update=own)})


def _images(data: Path | None, config: RunConfig, held_out: float) -> tuple[ImageSpec | None, int | None]:
    """Return format and classes of a silo's images, and how many it trains on at least; None of both without images."""
    if data is None:
        return None, None
    from fedsynth.data import image_folder_spec, warn_of_damaged_images

    size, root = config.data.image_size, data.expanduser()
    spec = image_folder_spec(root, None if size == AUTO else size)
    warn_of_damaged_images(root)
    return spec, training_images(root, held_out)


def training_images(root: Path, held_out: float) -> int:
    """Return how many images of a folder are trained on where a share ``held_out`` of them is not."""
    from fedsynth.data import held_out_counts, list_images

    counts = np.array([len(files) for files in list_images(root).files.values()], dtype=np.int64)
    return int((counts - held_out_counts(counts, held_out)).sum())


def _default(name: str) -> object:
    return SiloPolicy.model_fields[name].default
