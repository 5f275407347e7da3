"""What a run would ask, against what its silos allow: said before anybody trains, with silo and line."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from fedsynth.config import RunConfig
from fedsynth.config.methods import DDSASettings
from fedsynth.diffusion import codec_of, count_in_adapters, count_parameters
from fedsynth.errors import RunError
from fedsynth.policy import Refusal, SiloPolicy, plan_of, refusals
from fedsynth.spec import ImageSpec
from fedsynth.text import printable
from strategies.conversation.census import Census, Member

logger = logging.getLogger("fedsynth")


def check_policies(
    policies: Mapping[str, SiloPolicy],
    config: RunConfig,
    spec: ImageSpec,
    census: Census | None = None,
    labels: torch.Tensor | None = None,
) -> None:
    """Refuse a run that cannot work; what it can do without is named in the log.

    Args:
        policies: by silo.
        config: the run's.
        spec: format and classes of its images.
        census: what the silos hold, with ``labels``: the class of every synthetic image (N,). Without them, images and
            samples that a silo is asked for are not counted yet.

    Raises:
        RunError: names every silo that forbids a part of the run, and the lines.
    """
    parameters, shape = count_parameters(config, spec), codec_of(config, spec).shape
    adapters = count_in_adapters(config, spec)
    held = {name: 0 for name in policies}
    trained: dict[str, int] = {}
    if census is not None and labels is not None:
        counts = torch.bincount(labels, minlength=len(spec.classes))
        held = {member.name: int(counts[torch.tensor(member.label_counts) > 0].sum()) for member in census}
        trained = {member.name: images for member in census if (images := _trained(member, config))}
    forbidden: list[str] = []
    for name, num_samples in sorted(held.items()):
        plan = plan_of(config, spec, parameters, num_samples, trained.get(name), shape, adapter_parameters=adapters)
        found = refusals(policies[name], plan)
        if lines := [f"{refusal}{_left(refusal)}" for refusal in found if not refusal.optional]:
            forbidden.append(f"{name}: {'; '.join(lines)}{_contact(policies[name])}")
        for refusal in found:
            if refusal.optional and census is None:
                logger.warning("%s %s: %s", name, refusal.optional, refusal)
    if forbidden:
        raise RunError(
            f"policies forbid this run: {'; '.join(forbidden)}. Ask for less, leave these silos out, or have their"
            " operators change the line"
        )
    if census is None and not plan_of(config, spec).complete:
        logger.warning("strategy '%s' is a plug-in: whether policies allow it shows when it asks", config.run.strategy)


def _trained(member: Member, config: RunConfig) -> int:
    """Return the fewest images that a silo trains on; 0: not known, since those without labels may come to them."""
    settings = config.settings
    if isinstance(settings, DDSASettings) and "confusion" in settings.asks:
        return round(member.num_examples * (1 - settings.pseudo_holdout))
    return member.num_examples


def leave_out_rare_classes(policies: Mapping[str, SiloPolicy], census: Census, spec: ImageSpec) -> None:
    """Take from silos the classes that fewer hold than their policies want, as if they did not hold them.

    A silo that is left out of a class is one holder fewer for the others.

    Raises:
        RunError: nobody is left to hold a class.
    """
    lost: dict[int, str] = {}
    while found := _too_few_holders(policies, census):
        for member, label in found:
            line = policies[member.name].line("least_holders")
            why = f"class '{printable(spec.classes[label])}' has {census.holders[label]} holders"
            lost[label] = f"{member.name}: line '{line}': {why}"
            logger.warning("%s is not asked about it: %s", member.name, lost[label])
        for member, label in found:
            member.label_counts[label] = 0
    if gone := [lost[label] for label, count in enumerate(census.holders) if not count and label in lost]:
        raise RunError(f"policies forbid this run: {'; '.join(gone)}: have more silos hold the class, or leave it out")


def _too_few_holders(policies: Mapping[str, SiloPolicy], census: Census) -> list[tuple[Member, int]]:
    holders = census.holders
    return [
        (member, label)
        for member in census
        for label, count in enumerate(member.label_counts)
        if count and holders[label] < policies[member.name].least_holders
    ]


def _left(refusal: Refusal) -> str:
    return ", and the line says what is left" if "-in-all = " in refusal.line else ""


def _contact(policy: SiloPolicy) -> str:
    return f" (contact: {printable(policy.contact)})" if policy.contact else ""
