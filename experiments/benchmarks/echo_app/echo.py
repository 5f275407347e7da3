"""Times two ways of asking every silo once, in turn and on one grid."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsynth.files import write_json
from strategies.conversation.exchange import Exchange

TIMEOUT = 120.0
LONGEST_PAUSE = {"at once": 0.0, "with pauses": 0.2}
"""Longest pause before a round by rhythm, in seconds."""

Loop = Callable[[list[Message]], Iterable[Message]]
"""Sends messages and yields the answers."""

client_app = ClientApp()
server_app = ServerApp()


@client_app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(message.content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Write the seconds of every round by loop and rhythm.

    Loops are Flower's (``stock``) and ours (``exchange``), in turns of ten rounds. Rounds follow each other at once
    (``at once``) or after up to 0.2 s of other work (``with pauses``): the simulation looks for messages every 0.1 s,
    and a loop that polls as often falls into step with it.
    """
    exchange = Exchange(grid, timeout=TIMEOUT)
    loops: dict[str, Loop] = {
        "stock": lambda messages: grid.send_and_receive(messages, timeout=TIMEOUT),
        "exchange": lambda messages: (answer for _, answer in exchange.send(messages)),
    }
    nodes = exchange.wait_for_nodes(10, timeout=TIMEOUT)
    _round_seconds(loops["stock"], nodes)  # starts the workers
    seconds: dict[str, dict[str, list[float]]] = {rhythm: {loop: [] for loop in loops} for rhythm in LONGEST_PAUSE}
    chance = random.Random(0)
    for _ in range(int(context.run_config["turns"])):
        for rhythm, (loop, asked) in itertools.product(LONGEST_PAUSE, loops.items()):
            for _ in range(10):
                time.sleep(chance.uniform(0, LONGEST_PAUSE[rhythm]))
                seconds[rhythm][loop].append(_round_seconds(asked, nodes))
    write_json(Path(str(context.run_config["output"])), seconds)


def _round_seconds(ask: Loop, nodes: list[int]) -> float:
    content = RecordDict({"config": ConfigRecord({"word": "hello"})})
    messages = [Message(content, dst_node_id=node, message_type="query.echo") for node in nodes]
    start = time.monotonic()
    answers = list(ask(messages))
    seconds = time.monotonic() - start
    if len(answers) != len(nodes) or any(answer.has_error() for answer in answers):
        raise RuntimeError(f"{len(answers)} answers from {len(nodes)} silos, or an error among them")
    return seconds
