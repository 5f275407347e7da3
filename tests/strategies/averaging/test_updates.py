from __future__ import annotations

from fedsynth.messages import transport
from strategies.averaging.updates import Update, mean_metrics


def update(count: int, loss: float | None) -> Update:
    return Update(1, "silo-1", transport.encode_tensors({}), count, loss, 1.5)


def test_loss_is_weighted_by_the_images_of_those_that_report_it() -> None:
    metrics = mean_metrics([update(1, 4.0), update(3, 2.0)])
    assert dict(metrics) == {"num-examples": 4, "silos": 2, "loss": 2.5}
    assert mean_metrics([update(1, 4.0), update(3, None)])["loss"] == 4.0
    assert "loss" not in mean_metrics([update(3, None)])
