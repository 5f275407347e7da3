"""What ``fedsynth audit`` checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsynth.chain import read_chain
from fedsynth.cli.audited_set import check_last_level, differing, recompute_set, rounded
from fedsynth.config import RunConfig
from fedsynth.diffusion import codec_of, draw_initial_noise, initial_unet, make_scheduler, noise_predictor, sample
from fedsynth.errors import UserError
from fedsynth.output import RunFolder, SyntheticDataset, read_dataset
from fedsynth.output.audit_files import KEYS, LOG, altered_files
from fedsynth.privacy.sums.key_files import known_bytes, read_parties
from fedsynth.privacy.sums.key_text import keys_hash, keys_text
from fedsynth.replicas.audit import ROUNDS, RunAudit
from fedsynth.replicas.certificates import Parties
from fedsynth.replicas.content_ids import content_id
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

MODEL = "models/global/unet/diffusion_pytorch_model.safetensors"
COMPOSING = "dfd"
"""Strategy whose certificates are of noise predictions."""


def audited(folder: RunFolder, keys: Path) -> RunAudit:
    """Read the log of a run, and compare what it certifies with the run's files.

    Args:
        folder: the run's.
        keys: public keys of its silos, and of aggregators beside them.

    Raises:
        UserError: the keys or the log cannot be read.
    """
    report = RunAudit(parties=_parties(folder, keys))
    try:
        with (folder.audit / LOG).open("rb") as file:
            read_chain(file, report, report.take)
    except OSError as error:
        raise UserError(f"'{folder.audit / LOG}' cannot be read: {error.strerror}") from error
    _check_config(folder, report)
    _check_keys(folder, keys, report)
    if not report.files:
        report.complain("the run was not finished, or the last lines of its log are cut off: no list of its files")
        return report
    for problem in altered_files(folder.path, folder.audit, report.files):
        report.complain(problem)
    if report.rule == COMPOSING:
        check_last_level(folder, report)
    else:
        _check_model(folder, report)
        if missing := report.missing_rounds():
            report.complain(f"{missing} of the {ROUNDS} = {report.parameters[ROUNDS]} rounds are not in the log")
    _check_card(folder, report)
    return report


def recomputed(folder: RunFolder, report: RunAudit) -> str:
    """Compute anew what follows from the seed and what is certified: the first weights or noise, and the dataset.

    The bits of a drawing are those of the machine that drew: another processor or version of torch can move a pixel by
    a grey level, which is no fault.

    Returns:
        How many images differ by no more than that, in words.
    """
    try:
        config, dataset = folder.read_config(), read_dataset(folder.synthetic)
    except UserError as error:
        report.complain(str(error))
        return ""
    size, channels = dataset.images.shape[1], dataset.images.shape[3]
    spec = ImageSpec(channels, size, dataset.classes)
    if report.rule == COMPOSING:
        return recompute_set(folder, report, spec, dataset)
    first = initial_unet(config, spec)
    if report.first_base and content_id(first.state_dict()) != report.first_base:
        report.complain(
            "round 1 did not start from the weights that follow from the run's seed and settings as this machine draws"
            " them; on another processor or torch their last bits may differ"
        )
    if (drawn := _drawn_images(folder, config, spec, dataset)) is None:
        report.complain(f"{MODEL} cannot be read, so that no image can be drawn from it")
        return ""
    if count := differing(drawn, dataset, most=1):
        report.complain(f"{count} of {len(drawn)} images are not those that the final model draws")
    return rounded(drawn, dataset)


def _parties(folder: RunFolder, keys: Path) -> Parties:
    """Return whose signatures count: in a run whose nodes aggregate, theirs and not the silos'."""
    known, others = read_parties(keys)
    try:
        beside = others if folder.read_config().num_aggregators else {}
    except UserError:
        beside = others  # _check_config says what is wrong with it
    silos, aggregators = ({name: one.signatures for name, one in part.items()} for part in (known, beside))
    return Parties("", keys_hash(keys_text(known, beside)), silos, aggregators or silos, "byzantine")


def _check_config(folder: RunFolder, report: RunAudit) -> None:
    try:
        config = folder.read_config()
    except UserError as error:
        report.complain(str(error))
        return
    said = {**config.settings.model_dump(by_alias=True), "replica-quorum": config.replicas.replica_quorum}
    if report.rule and (config.run.strategy, said) != (report.rule, report.parameters):
        report.complain("config.json names another strategy, quorum or other settings than the certificates")


def _check_keys(folder: RunFolder, keys: Path, report: RunAudit) -> None:
    """Compare the keys that lie in the run folder, by which nothing is judged, with those of the audit."""
    name = f"{folder.audit.name}/{KEYS}"
    try:
        own = read_parties(folder.audit / KEYS)
        differs = own != read_parties(keys) or (folder.audit / KEYS).read_bytes() != known_bytes(*own)
    except (OSError, UserError):
        differs = True
    if differs:
        report.complain(f"{name} is not the key file that this audit goes by, as it was written")


def _check_model(folder: RunFolder, report: RunAudit) -> None:
    weights = _weights(folder)
    if weights is None:
        report.complain(f"{MODEL} is gone, or cannot be read")
    elif report.certificates.result and content_id(weights) != report.certificates.result:
        report.complain(f"{MODEL} is not the model that round {report.certificates.round} certifies")


def _check_card(folder: RunFolder, report: RunAudit) -> None:
    try:
        card = (folder.synthetic / "README.md").read_text(encoding="utf-8")
        named = read_dataset(folder.synthetic).provenance.get("certified", {})
    except (OSError, ValueError) as error:
        report.complain(f"the dataset cannot be read: {error}")
        return
    head = report.certificates.head
    if head not in card or named.get("head") != head:
        report.complain("the dataset's card or provenance.json does not name the head of the chain")


def _weights(folder: RunFolder) -> dict[str, torch.Tensor] | None:
    try:
        return load_file(folder.path / MODEL)
    except (OSError, SafetensorError, ValueError):
        return None


def _drawn_images(
    folder: RunFolder, config: RunConfig, spec: ImageSpec, dataset: SyntheticDataset
) -> NDArray[np.uint8] | None:
    """Return what the final model draws, by the steps of :func:`strategies.global_model`; None: there is none."""
    weights = _weights(folder)
    if weights is None:
        return None
    unet, codec = initial_unet(config, spec), codec_of(config, spec)
    unet.load_state_dict(weights)
    noise = draw_initial_noise(config.run.seed, len(dataset.labels), codec.shape)
    steps, sampler = config.sampling.sampling_steps, config.settings.sampler
    scheduler = make_scheduler(config.recipe, steps, sampler, codec.bound)
    predict = noise_predictor(unet, config.recipe, codec.bound)
    generator = make_generator(config.run.seed, "sampling")
    return codec.decode(sample(predict, scheduler, noise, torch.from_numpy(dataset.labels), generator))
