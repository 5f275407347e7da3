from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord

from experiments.benchmarks import aggregation
from fedsynth.messages import transport


@pytest.mark.parametrize("name", aggregation.RULES)
def test_both_sides_make_the_same_of_the_answers(name: str) -> None:
    aggregation._prepare()
    weights = transport.encode_tensors({"layer": torch.zeros(aggregation.NUM_SILOS)})
    updates = [aggregation._update(weights, silo) for silo in range(aggregation.NUM_SILOS)]
    results = []
    for ours in (True, False):
        # Both sides may empty the records.
        replies = [aggregation._reply(silo, ArrayRecord(dict(update))) for silo, update in enumerate(updates)]
        arrays, _ = aggregation._aggregator(name, ours, weights).aggregate_train(1, replies)
        assert arrays is not None
        results.append(transport.decode(arrays["layer"]).numpy())
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-8)
    assert np.abs(results[0]).max() > 0
