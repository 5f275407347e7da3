"""Rules by the names of strategies: what whoever computes a round anew gets, and what the strategy itself makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_made_models import answers, assert_equal, counts_of, gather, model, round_of, send

from fedsynth.averaging import Layers
from fedsynth.averaging.rules import FROM_BASE, RULES, Updates, updates_needed
from fedsynth.config.types import REPLICATED_UPDATES
from fedsynth.diffusion import PARTS, select_parts
from fedsynth.messages import TrainRequest
from strategies import STRATEGIES
from strategies.averaging.krum import KrumFamily

OPTIONS: dict[str, dict[str, Any]] = {
    "fedavgm": {"server_momentum": 0.4},
    "fedprox": {"proximal_mu": 0.1},
    "fedtrimmedavg": {"beta": 0.3},
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    "bulyan": {"num_malicious_nodes": 1},
}


def test_every_replicated_strategy_has_a_rule() -> None:
    assert set(RULES) == set(REPLICATED_UPDATES)


@pytest.mark.parametrize("name", RULES)
def test_three_rounds_are_those_of_the_strategy_bit_for_bit(name: str) -> None:
    strategy = STRATEGIES[name](**OPTIONS.get(name, {}))
    expected, weights, state = model(0), model(0), dict[str, torch.Tensor]()
    for number in range(1, 4):
        sent, requests = round_of(number, 8, 1), send(strategy, number, expected, range(8))
        parts = [TrainRequest.from_message(request).report_parts or PARTS for request in requests]
        expected = gather(strategy, number, answers(requests, sent, counts_of(8)))[0]
        models: list[Layers] = [select_parts(*one) for one in zip(sent, parts, strict=True)]
        before = {key: values.clone() for key, values in state.items()}
        base = weights if name in FROM_BASE else {}
        weights, carried = RULES[name](Updates(models, counts_of(8), base, state), strategy.settings)
        assert_equal(weights, expected)
        assert_equal(state, before)
        state = carried
    moments = strategy.state_dict().get("moments", {})
    assert_equal(state, {f"{which}/{layer}": values for which, of in moments.items() for layer, values in of.items()})


def test_as_many_updates_are_needed_as_the_strategy_itself_asks_for() -> None:
    for name, options, needed in (
        ("fedavg", {}, 1),
        ("krum", {"num_malicious_nodes": 2}, 7),
        ("multikrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 9}, 11),
        ("bulyan", {"num_malicious_nodes": 2}, 11),
    ):
        strategy = STRATEGIES[name](**options)
        assert updates_needed(name, strategy.settings) == needed
        if isinstance(strategy, KrumFamily):
            assert strategy.models_needed() <= needed
