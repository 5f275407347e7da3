from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsynth import wire
from strategies.aggregation import check_model, shapes, weighted_mean


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "steps": torch.randint(100, (2,), generator=generator),
    }


def test_weighted_mean_agrees_with_loops_in_float64() -> None:
    models, weights = [model(seed) for seed in range(5)], [3, 1, 400, 7, 0.5]
    mean = wire.decode_tensors(weighted_mean([wire.encode_tensors(m) for m in models], weights))
    for name, value in mean.items():
        exact = sum(w * m[name].numpy().astype(np.float64) for m, w in zip(models, weights, strict=True)) / sum(weights)
        assert value.dtype == models[0][name].dtype
        expected = np.round(exact) if name == "steps" else exact
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7, atol=1e-12)


def test_records_are_emptied_so_that_no_second_set_is_held() -> None:
    records = [wire.encode_tensors(model(seed)) for seed in range(3)]
    weighted_mean(records, [1, 1, 1])
    assert [len(record) for record in records] == [0, 0, 0]


def test_half_precision_answers_are_averaged_in_single() -> None:
    records = [wire.encode_tensors({"w": torch.full((3,), value)}, "float16") for value in (1.0, 2.0)]
    mean = wire.decode_tensors(weighted_mean(records, [1, 2]))["w"]
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), 5 / 3, rtol=1e-7)


def test_check_model_accepts_what_was_sent_and_says_what_does_not_fit() -> None:
    sent = wire.encode_tensors(model(0))
    expected = shapes(sent)
    check_model(wire.encode_tensors(model(1)), expected)
    lacking = {name: value for name, value in model(1).items() if name != "scalar"}
    with pytest.raises(ValueError, match=r"layers \['scalar'\] are missing or unknown"):
        check_model(wire.encode_tensors(lacking), expected)
    with pytest.raises(ValueError, match=r"layer weight has shape \(3, 4\), not \(4, 3\)"):
        check_model(wire.encode_tensors({**model(1), "weight": torch.zeros(3, 4)}), expected)
    with pytest.raises(ValueError, match="layer scalar is not finite"):
        check_model(wire.encode_tensors({**model(1), "scalar": torch.tensor(torch.nan)}), expected)
    lying = Array(dtype="float32", shape=(4, 3), stype="numpy.ndarray", data=b"no array")
    with pytest.raises(ValueError, match="array cannot be read"):
        check_model(ArrayRecord({**wire.encode_tensors(model(1)), "weight": lying}), expected)
