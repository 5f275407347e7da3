"""What ``fedsynth audit`` checks of a set that was made by certified noise predictions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsynth.config import RunConfig
from fedsynth.config.methods import DfDSettings
from fedsynth.diffusion import codec_of, draw_initial_noise, make_scheduler
from fedsynth.mixture.moves import COMPOSED, LABELS, SAMPLES, moved
from fedsynth.output import RunFolder, SyntheticDataset, read_dataset
from fedsynth.output.audit_files import LAST_LEVEL
from fedsynth.replicas.audit import RunAudit
from fedsynth.replicas.content_ids import content_id
from fedsynth.spec import ImageSpec

BEFORE = "before/"
"""Begins the names of what the sampler remembers of the level before."""

_Level = dict[str, torch.Tensor]


def check_last_level(folder: RunFolder, report: RunAudit) -> None:
    """Compare what the last round made with its certificate, and the images with what its prediction moves to.

    Another CPU may move a grey level; more is no rounding.
    """
    name, chain = f"{folder.audit.name}/{LAST_LEVEL}", report.certificates
    try:
        config, dataset = folder.read_config(), read_dataset(folder.synthetic)
        level, before = _last_level(folder)
    except (OSError, SafetensorError, ValueError) as error:
        report.complain(f"{name} or the dataset cannot be read: {error}")
        return
    if (content_id(level), content_id(before)) != (chain.result, chain.state):
        report.complain(f"{name} is not what round {chain.round} certifies")
    elif not np.array_equal(level[LABELS].numpy(), dataset.labels):
        report.complain("the dataset's labels are not those of the certified set")
    elif (drawn := _moved_images(config, report, dataset, level, before)) is None:
        report.complain(f"{len(chain.seen)} levels are certified, and not as many as config.json names")
    elif count := differing(drawn, dataset, most=1):
        report.complain(f"{count} of {len(drawn)} images are not those that the last certified prediction moves to")


def recompute_set(folder: RunFolder, report: RunAudit, spec: ImageSpec, dataset: SyntheticDataset) -> str:
    """Draw the first noise anew, and compare the images to the grey level.

    Args:
        folder: the run's.
        report: takes what does not hold.
        spec: format and classes of the run.
        dataset: its images.

    Returns:
        How many images differ by rounding, in words; :func:`check_last_level` finds those that differ by more.
    """
    config = folder.read_config()
    noise = draw_initial_noise(config.run.seed, len(dataset.labels), codec_of(config, spec).shape)
    first = {SAMPLES: noise, LABELS: torch.from_numpy(dataset.labels)}
    if report.first_base and content_id(first) != report.first_base:
        report.complain(
            "round 1 did not start from the noise that follows from the run's seed as this machine draws it; on another"
            " processor or torch its last bits may differ"
        )
    try:
        level, before = _last_level(folder)
    except (OSError, SafetensorError, ValueError):
        return ""  # said already
    drawn = _moved_images(config, report, dataset, level, before)
    return "" if drawn is None else rounded(drawn, dataset)


def _last_level(folder: RunFolder) -> tuple[_Level, _Level]:
    """Return what the last round made, and the level before, where the sampler looks back."""
    arrays = load_file(folder.audit / LAST_LEVEL)
    before = {name.removeprefix(BEFORE): values for name, values in arrays.items() if name.startswith(BEFORE)}
    level = {name: values for name, values in arrays.items() if not name.startswith(BEFORE)}
    if set(level) != {SAMPLES, LABELS, COMPOSED}:
        raise ValueError("it holds no level of a set")
    return level, before


def _moved_images(
    config: RunConfig, report: RunAudit, dataset: SyntheticDataset, level: _Level, before: _Level
) -> NDArray[np.uint8] | None:
    """Return the images of a set after its last move; None: it was not at its last level."""
    settings = config.settings
    if not isinstance(settings, DfDSettings):
        return None
    codec = codec_of(config, ImageSpec(dataset.images.shape[3], dataset.images.shape[1], dataset.classes))
    scheduler = make_scheduler(config.recipe, settings.dfd_rounds, settings.sampler, codec.bound)
    if len(scheduler.timesteps) != len(report.certificates.seen):
        return None
    return codec.decode(moved(scheduler, len(scheduler.timesteps) - 1, level, before, config.run.seed))


def rounded(drawn: NDArray[np.uint8], dataset: SyntheticDataset) -> str:
    """Say how many images differ by one grey level at most."""
    count = differing(drawn, dataset, most=0) - differing(drawn, dataset, most=1)
    return f"drawn  anew: {count} of {len(drawn)} images differ by a grey level, as on another processor or torch"


def differing(drawn: NDArray[np.uint8], dataset: SyntheticDataset, most: int) -> int:
    """Return how many images differ by more than ``most`` grey levels somewhere."""
    if drawn.shape != dataset.images.shape:
        return len(dataset.images)
    apart = np.abs(drawn.astype(np.int16) - dataset.images)
    return int(np.any(apart > most, axis=(1, 2, 3)).sum())
