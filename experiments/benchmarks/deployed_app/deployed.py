"""Cooperative rounds with a tiny network: noise predictions of every silo for one set, timed on both sides."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsynth import wire
from fedsynth.files import write_json
from strategies.exchange import ExchangeGrid
from strategies.fast_replies import take_replies_fast

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


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Write, for every round, its seconds and those of the silo that worked longest."""
    config = context.run_config
    if config["fast-replies"]:
        take_replies_fast()
    exchange = ExchangeGrid(grid, timeout=TIMEOUT)
    nodes = exchange.wait_for_nodes(int(config["silos"]), timeout=TIMEOUT)
    samples = torch.randn(int(config["num-samples"]), 1, 8, 8)
    rounds = []
    for _ in range(int(config["rounds"])):
        start = time.monotonic()
        work = _round(exchange, nodes, samples.chunk(int(config["streams"])))
        rounds.append({"seconds": time.monotonic() - start, "silo-seconds": work})
        samples = samples + 0.01
    write_json(Path(str(config["output"])), rounds)


def _round(grid: ExchangeGrid, nodes: list[int], parts: tuple[torch.Tensor, ...]) -> float:
    """Send every part to every silo at once; return the seconds of the silo that worked longest."""
    messages = [_question(node, part) for part in parts for node in nodes]
    worked = dict.fromkeys(nodes, 0.0)
    answers = list(grid.send_and_receive(messages, timeout=TIMEOUT))
    if len(answers) != len(messages):
        raise RuntimeError(f"{len(answers)} answers to {len(messages)} messages")
    for answer in answers:
        if answer.has_error():
            raise RuntimeError(answer.error.reason)
        worked[answer.metadata.src_node_id] += wire.number(wire.metrics(answer), "seconds")
    return max(worked.values())


def _question(node: int, part: torch.Tensor) -> Message:
    return wire.request(node, wire.EPSILON, {}, wire.encode_tensors({wire.SAMPLES: part}))
