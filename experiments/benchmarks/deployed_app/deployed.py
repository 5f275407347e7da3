"""Rounds with a tiny network, timed on both sides: noise predictions of every silo for one set, or its weights."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsynth.files import write_json
from fedsynth.messages import (
    Answer,
    EpsilonAnswer,
    EpsilonRequest,
    Request,
    TrainAnswer,
    TrainRequest,
    sender_of,
    transport,
)
from fedsynth.spec import ImageSpec
from strategies.conversation.ask import ask
from strategies.conversation.census import Census
from strategies.conversation.exchange import Exchange
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
    samples = EpsilonRequest.from_message(message).samples
    with torch.no_grad():
        predicted = _network()(samples, 500).sample
    answer = EpsilonAnswer(epsilon=predicted, num_examples=len(samples), seconds=time.monotonic() - start)
    return answer.to_message(message, sender_of(message))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Load the weights that came and send them back, as after training."""
    start = time.monotonic()
    _network().load_state_dict(transport.decode_tensors(TrainRequest.from_message(message).arrays))
    record = transport.encode_tensors(_network().state_dict())
    answer = TrainAnswer(arrays=record, num_examples=1, seconds=time.monotonic() - start)
    return answer.to_message(message, sender_of(message))


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Write, for every round, its seconds and those of the silo that worked longest."""
    config = context.run_config
    if config["fast-replies"]:
        take_replies_fast()
    exchange = Exchange(grid, timeout=TIMEOUT)
    census = Census.unknown(exchange.wait_for_nodes(int(config["silos"]), timeout=TIMEOUT))
    rounds = []
    for number in range(int(config["rounds"])):
        start = time.monotonic()
        worked = [0.0] * len(census)
        questions = [(k, request) for request in _requests(config, number) for k in range(len(census))]
        for k, answer in ask(exchange, questions, census, needed=len(census)):
            worked[k] += answer.seconds
        rounds.append({"seconds": time.monotonic() - start, "silo-seconds": max(worked)})
    write_json(Path(str(config["output"])), rounds)


def _requests(config: UserConfig, number: int) -> list[Request[Answer]]:
    """Return what every silo is asked in a round: new numbers every round, as in a real run."""
    if config["weights"]:
        moved = {name: value + 0.01 * number for name, value in _network().state_dict().items()}
        spec = ImageSpec(1, 8, ("any",))
        return [TrainRequest(arrays=transport.encode_tensors(moved), spec=spec, server_round=number + 1, steps=0)]
    parts = torch.randn(int(config["num-samples"]), 1, 8, 8).chunk(int(config["streams"]))
    return [
        EpsilonRequest(samples=part, labels=torch.zeros(len(part), dtype=torch.long), timestep=500) for part in parts
    ]
