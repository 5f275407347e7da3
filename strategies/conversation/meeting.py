"""Meeting the silos of a run: what each of them holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fedsynth import __version__
from fedsynth.errors import RunError
from fedsynth.messages import PROTOCOL, PrepareAnswer, PrepareRequest
from fedsynth.spec import ImageSpec
from strategies.conversation.ask import ask
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange

logger = logging.getLogger("fedsynth")


def take_census(
    exchange: Exchange,
    node_ids: Sequence[int],
    spec: ImageSpec,
    max_silo_images: int,
    names: Mapping[int, str] | None = None,
    codec: str | None = None,
    start: str | None = None,
    least: int = 1,
) -> Census:
    """Ask every silo what it holds; one whose claim makes no sense is left out, with name and reason in the log.

    Args:
        exchange: the way to the silos.
        node_ids: whom to ask.
        spec: format and classes of the run's images.
        max_silo_images: the most that a silo may claim.
        names: by node id, where the silos have said them already; none may change it.
        codec: digest of the run's codec, which every silo compares with its own; None: they do not.
        start: digest of the public model that networks start from, which they compare, too; None: they do not.
        least: the fewest images that a silo may claim.

    Raises:
        RunError: a silo cannot open its images, two go by one name, or nobody is left.
    """
    nodes = Census.unknown(node_ids)
    questions = [(k, PrepareRequest(spec=spec, codec=codec, start=start)) for k in range(len(nodes))]
    answers = list(ask(exchange, questions, nodes, needed=len(nodes)))
    members: list[Member] = []
    reasons: list[str] = []
    for k, answer in sorted(answers, key=lambda item: item[1].sender[:2]):
        node_id, said = nodes.members[k].node_id, answer.sender.name
        name = said if names is None else names[node_id]
        problem = _problem(answer, len(spec.classes), least, max_silo_images)
        if problem := f"calls itself '{said}' now" if said != name else problem:
            reasons.append(f"{name}: {problem}")
            logger.warning("%s left out of the run: %s", name, problem)
            continue
        counts = list(answer.label_counts)
        members.append(Member(node_id, name, sum(counts), counts, sum_keys=answer.sum_keys, version=answer.version))
        if answer.version not in ("", __version__):
            logger.info(
                "%s has fedsynth %s, this server %s: they go together, both speak protocol %d",
                *(name, answer.version, __version__, PROTOCOL),
            )
    if not members:
        raise RunError(f"no silo can take part: {reasons[0]}")
    taken = [member.name for member in members]
    if len(set(taken)) < len(taken):
        raise RunError(f"two silos go by one name ({', '.join(taken)}): give each its own silo-name")
    return Census(members)


def _problem(answer: PrepareAnswer, num_classes: int, least: int, most: int) -> str:
    """Return what makes no sense about a silo's claim; empty if nothing."""
    counts = list(answer.label_counts)
    if len(counts) != num_classes:
        return f"label counts {counts} do not fit {num_classes} classes"
    if not least <= sum(counts) <= most:
        why = "; the noise of its policy (count-noise) hides classes of few" if not sum(counts) else ""
        return f"claims {sum(counts)} images, must be {least} to max-silo-images = {most}{why}"
    return ""
