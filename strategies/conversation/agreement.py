"""What real silos agree on before they are counted: one image format, and the union of their classes by name."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, did_you_mean
from fedsynth.messages import DescribeAnswer, DescribeRequest, MessageError
from fedsynth.policy import SiloPolicy
from fedsynth.roles import SILO
from fedsynth.silo_names import SiloNames
from fedsynth.spec import ImageSpec, look_alikes
from strategies.conversation.ask import ask
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
from strategies.conversation.names import NameBook

logger = logging.getLogger("fedsynth")

_WITH_CLASSES = "have the silo rename or remove the folder, or list it in class-names"


def agree(
    exchange: Exchange, config: RunConfig, known: Collection[str] | None = None, others: Collection[int] = ()
) -> tuple[dict[int, str], ImageSpec, dict[str, SiloPolicy]]:
    """Ask every connected silo what its images look like and what it allows, and settle what they share.

    Args:
        exchange: the silos; at least ``num-clients`` are connected.
        config: the run's.
        known: silos of the run that continues; None for a new one.
        others: node ids that are no silos.

    Returns:
        Names of the silos that take part by node id, the format that their images are brought into, and what every one
        of them allows, by name.

    Raises:
        RunError: too few silos, two of one name, or formats or classes that do not fit together; says whose.
    """
    registered = exchange.get_nodes()
    nodes = Census.unknown(registered.keys() - set(others))
    questions = [(k, DescribeRequest()) for k in range(len(nodes))]
    found: dict[str, int] = {}
    specs: dict[str, ImageSpec] = {}
    policies: dict[int, SiloPolicy] = {}

    names = NameBook(registered, SiloNames.of_this_link())

    def check(silo: int, answer: DescribeAnswer) -> None:
        if answer.role != SILO:
            raise MessageError("it aggregates, and this run's aggregators are others")
        names.check(nodes.members[silo].node_id, answer.sender.name)
        policies[silo] = SiloPolicy.from_public(answer.policy)

    allowed: dict[str, SiloPolicy] = {}
    for k, answer in ask(exchange, questions, nodes, needed=config.run.num_clients, check=check):
        name = answer.sender.name
        if name in found:
            raise RunError(f"two silos go by one name ('{name}'): give each its own silo-name")
        found[name] = nodes.members[k].node_id
        specs[name] = answer.spec
        allowed[name] = policies[k]
    chosen = choose_silos(found, config.run.num_clients, known)
    spec = reconcile({name: specs[name] for name in chosen}, config)
    return {found[name]: name for name in chosen}, spec, {name: allowed[name] for name in chosen}


def choose_silos(found: Collection[str], count: int, known: Collection[str] | None) -> list[str]:
    """Return the silos that take part: those of the run that continues, otherwise the first ``count`` by name.

    Raises:
        RunError: one of the former is not connected.
    """
    if known is not None and (absent := sorted(set(known) - set(found))):
        raise RunError(f"{', '.join(absent)}: not connected, but the run to resume has them; start them and resume")
    chosen = sorted(found if known is None else known)[:count]
    if idle := sorted(set(found) - set(chosen)):
        logger.info("num-clients = %d: %s stand(s) by", count, ", ".join(idle))
    return chosen


def reconcile(specs: Mapping[str, ImageSpec], config: RunConfig) -> ImageSpec:
    """Settle the format of a run: the silos' own size, colour if any has colour, and all classes sorted by name.

    Args:
        specs: what each silo says, by name.
        config: the run's; ``class-names`` lists the classes where the operator wants no others.

    Raises:
        RunError: no silo has a class, sizes differ and ``image-size`` is not given, class names differ only in case,
            spaces, hyphens or underscores, or a name is not in ``class-names``.
    """
    sizes = {name: spec.size for name, spec in specs.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items()))
        raise RunError(f"the silos' images differ in size ({said} pixels): set image-size")
    given, held = config.data.classes(), _holders(specs)
    if not held:
        raise RunError("all images of all silos are unlabelled: put labelled ones into class folders")
    if given is None:
        _refuse_look_alikes(held)
    else:
        _compare_with_given(held, given)
    for name, silos in held.items():
        if len(silos) < len(specs):
            logger.info("class '%s' is held by %s only", name, ", ".join(silos))
    channels = max(spec.channels for spec in specs.values())
    agreed = ImageSpec(channels, next(iter(sizes.values())), given or tuple(held))
    depth = "grey" if channels == 1 else "colour"
    logger.info("images: %s, %d x %d; classes: %s", depth, agreed.size, agreed.size, ", ".join(agreed.classes))
    return agreed


def _holders(specs: Mapping[str, ImageSpec]) -> dict[str, list[str]]:
    """Class -> silos that hold it, both sorted."""
    names = sorted({name for spec in specs.values() for name in spec.classes})
    return {name: [silo for silo in sorted(specs) if name in specs[silo].classes] for name in names}


def _refuse_look_alikes(held: Mapping[str, list[str]]) -> None:
    for names in look_alikes(held):
        said = ", ".join(f"'{name}' ({', '.join(held[name])})" for name in names)
        raise RunError(
            f"classes {said} are probably the same: have the silos rename their folders, or list all classes"
            " in class-names if they are not"
        )


def _compare_with_given(held: Mapping[str, list[str]], given: Collection[str]) -> None:
    unknown = [f"'{name}' ({', '.join(held[name])}{did_you_mean(name, given)})" for name in held if name not in given]
    if unknown:
        raise RunError(f"not in class-names: {'; '.join(unknown)}: {_WITH_CLASSES}")
    if absent := [name for name in given if name not in held]:
        raise RunError(f"class-names: no silo holds {', '.join(map(repr, absent))}: leave it out, or connect who does")
