"""Meeting the nodes of a run that aggregate and hold no images."""

from __future__ import annotations

import logging

from fedsynth.config import RunConfig
from fedsynth.errors import RunError
from fedsynth.messages import DescribeAnswer, DescribeRequest, MessageError
from fedsynth.policy import SiloPolicy
from fedsynth.roles import AGGREGATOR
from fedsynth.silo_names import SiloNames
from strategies.conversation.ask import ask
from strategies.conversation.census import Census, Member
from strategies.conversation.exchange import Exchange
from strategies.conversation.names import NameBook

logger = logging.getLogger("fedsynth")


def meet_aggregators(exchange: Exchange, config: RunConfig) -> Census:
    """Ask every connected node for its role, and return those that aggregate, by name.

    Args:
        exchange: the nodes; all of the run's are connected.
        config: the run's, with ``aggregators = "nodes"``.

    Raises:
        RunError: fewer or more than ``num-aggregators``, two of one name, or one that answers no such questions.
    """
    registered = exchange.get_nodes()
    nodes = Census.unknown(registered)
    names = NameBook(registered, SiloNames.of_this_link())

    def check(node: int, answer: DescribeAnswer) -> None:
        if answer.role != AGGREGATOR:
            return
        names.check(nodes.members[node].node_id, answer.sender.name)
        if "aggregate" not in SiloPolicy.from_public(answer.policy).answers:
            raise MessageError("its policy does not answer 'aggregate'")

    questions = [(k, DescribeRequest()) for k in range(len(nodes))]
    found: dict[str, Member] = {}
    for k, answer in ask(exchange, questions, nodes, needed=0, check=check):
        if answer.role != AGGREGATOR:
            continue
        name = answer.sender.name
        if name in found:
            raise RunError(f"two aggregators go by one name ('{name}'): give each its own silo-name")
        found[name] = Member(nodes.members[k].node_id, name, 0, [], sum_keys=answer.sum_keys, version=answer.version)
    if len(found) != config.num_aggregators:
        raise RunError(
            f"num-aggregators = {config.num_aggregators}, and {len(found)} nodes aggregate"
            f" ({', '.join(sorted(found)) or 'none'}): start the others with 'fedsynth silo start --role aggregator',"
            " or set num-aggregators to their number"
        )
    logger.info("aggregators: %s", ", ".join(sorted(found)))
    return Census(found[name] for name in sorted(found))
