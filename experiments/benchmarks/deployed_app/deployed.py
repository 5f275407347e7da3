"""Rounds with a tiny network, timed on both sides: noise predictions of every silo for one set, or its weights."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsynth.files import write_json
from fedsynth.messages import wire
from strategies.conversation.exchange import ExchangeGrid
from strategies.conversation.fast_replies import take_replies_fast

TIMEOUT = 300.0

client_app = ClientApp()
server_app = ServerApp()


@lru_cache
def _network() -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, **blocks).eval()


@client_app.query("epsilon")
def epsilon(message: Message, context: Context) -> Message:
    """Predict the noise of the samples that came, and say how long that took."""
    start = time.monotonic()
    samples = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))[wire.SAMPLES]
    with torch.no_grad():
        predicted = _network()(samples, 500).sample
    record = wire.encode_tensors({wire.EPSILON_RECORD: predicted})
    metrics = {"num-examples": len(samples), "seconds": time.monotonic() - start}
    return wire.answer(message, ConfigRecord(), metrics, **{wire.EPSILON_RECORD: record})


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Load the weights that came and send them back, as after training."""
    start = time.monotonic()
    _network().load_state_dict(wire.decode_tensors(wire.array_record(message, wire.ARRAYS)))
    record = wire.encode_tensors(_network().state_dict())
    return wire.answer(message, ConfigRecord(), {"seconds": time.monotonic() - start}, **{wire.ARRAYS: record})


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Write, for every round, its seconds and those of the silo that worked longest."""
    config = context.run_config
    if config["fast-replies"]:
        take_replies_fast()
    exchange = ExchangeGrid(grid, timeout=TIMEOUT)
    nodes = exchange.wait_for_nodes(int(config["silos"]), timeout=TIMEOUT)
    rounds = []
    for number in range(int(config["rounds"])):
        start = time.monotonic()
        work = _round(exchange, nodes, *_question(config, number))
        rounds.append({"seconds": time.monotonic() - start, "silo-seconds": work})
    write_json(Path(str(config["output"])), rounds)


def _question(config: UserConfig, number: int) -> tuple[str, list[ArrayRecord]]:
    """Return the kind of a round's messages and what each holds: new numbers every round, as in a real run."""
    if config["weights"]:
        return wire.TRAIN, [wire.encode_tensors({k: v + 0.01 * number for k, v in _network().state_dict().items()})]
    samples = torch.randn(int(config["num-samples"]), 1, 8, 8)
    return wire.EPSILON, [wire.encode_tensors({wire.SAMPLES: part}) for part in samples.chunk(int(config["streams"]))]


def _round(grid: ExchangeGrid, nodes: list[int], kind: str, records: list[ArrayRecord]) -> float:
    """Send every record to every silo at once; return the seconds of the silo that worked longest."""
    messages = [wire.request(node, kind, {}, record) for record in records for node in nodes]
    worked = dict.fromkeys(nodes, 0.0)
    answers = list(grid.send_and_receive(messages, timeout=TIMEOUT))
    if len(answers) != len(messages):
        raise RuntimeError(f"{len(answers)} answers to {len(messages)} messages")
    for answer in answers:
        if answer.has_error():
            raise RuntimeError(answer.error.reason)
        worked[answer.metadata.src_node_id] += wire.number(wire.metrics(answer), "seconds")
    return max(worked.values())
