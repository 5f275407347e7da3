from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsynth.messages import transport
from strategies.averaging.aggregation import check_model, chunk_length, combine_layers, shapes, weighted_mean


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "steps": torch.randint(100, (2,), generator=generator),
    }


def check(changed: dict[str, torch.Tensor]) -> None:
    """Check a sound model but for the changed layers."""
    check_model(transport.encode_tensors({**model(1), **changed}), shapes(transport.encode_tensors(model(0))))


def test_weighted_mean_agrees_with_loops_in_float64() -> None:
    models, weights = [model(seed) for seed in range(5)], [3, 1, 400, 7, 0.5]
    mean = transport.decode_tensors(weighted_mean([transport.encode_tensors(m) for m in models], weights))
    for name, value in mean.items():
        exact = sum(w * m[name].numpy().astype(np.float64) for m, w in zip(models, weights, strict=True)) / sum(weights)
        assert value.dtype == models[0][name].dtype
        expected = np.round(exact) if name == "steps" else exact
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7, atol=1e-12)


def test_layers_longer_than_what_is_worked_on_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10, 2, chunk_length(10) + 7, generator=generator)
    mean = weighted_mean([transport.encode_tensors({"w": value}) for value in values], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    exact = np.average(values.numpy().astype(np.float64), axis=0, weights=range(1, 11))
    np.testing.assert_allclose(transport.decode(mean["w"]).numpy(), exact, rtol=1e-7, atol=1e-12)


def test_mean_of_identical_models_is_that_model_and_the_records_are_emptied() -> None:
    records = [transport.encode_tensors(model(0)) for _ in range(10)]
    mean = weighted_mean(records, [1.0 / (k + 3) for k in range(10)])
    assert all(torch.equal(value, model(0)[name]) for name, value in transport.decode_tensors(mean).items())
    assert [len(record) for record in records] == [0] * 10, "no second set of models is held"


def test_half_precision_answers_are_averaged_in_single() -> None:
    records = [transport.encode_tensors({"w": torch.full((3,), value)}, "float16") for value in (1.0, 2.0)]
    mean = transport.decode_tensors(weighted_mean(records, [1, 2]))["w"]
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), 5 / 3, rtol=1e-7)


def test_check_model_accepts_what_was_sent_and_says_what_does_not_fit() -> None:
    check({})
    lacking = {name: value for name, value in model(1).items() if name != "scalar"}
    with pytest.raises(ValueError, match=r"layers \['scalar'\] are missing or unknown"):
        check_model(transport.encode_tensors(lacking), shapes(transport.encode_tensors(model(0))))
    with pytest.raises(ValueError, match=r"layer weight has shape \(3, 4\), not \(4, 3\)"):
        check({"weight": torch.zeros(3, 4)})
    lying = Array(dtype="float32", shape=(4, 3), stype="numpy.ndarray", data=b"no array")
    with pytest.raises(ValueError, match="array cannot be read"):
        check_model(
            ArrayRecord({**transport.encode_tensors(model(1)), "weight": lying}),
            shapes(transport.encode_tensors(model(0))),
        )


def test_check_model_takes_any_precision_but_no_other_kind_of_number() -> None:
    check({"weight": torch.ones(4, 3, dtype=torch.float16)})
    check({"weight": torch.ones(4, 3, dtype=torch.float64)})
    with pytest.raises(ValueError, match="layer weight holds int64 numbers, not floating-point"):
        check({"weight": torch.ones(4, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="layer steps holds floating-point numbers, not int64"):
        check({"steps": torch.ones(2)})
    with pytest.raises(ValueError, match="layer steps holds int8 numbers, not int64"):
        check({"steps": torch.ones(2, dtype=torch.int8)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_check_model_finds_what_is_not_finite_wherever_it_is(value: float, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for position in range(12):
            layer = torch.ones(12, dtype=dtype)
            layer[position] = value
            with pytest.raises(ValueError, match="layer weight is not finite"):
                check({"weight": layer.view(4, 3)})
    with pytest.raises(ValueError, match="layer scalar is not finite"):
        check({"scalar": torch.tensor(value, dtype=dtype)})


def test_check_model_knows_what_single_precision_can_hold() -> None:
    check({"weight": torch.full((4, 3), torch.finfo(torch.float32).max)})
    check({"weight": torch.full((4, 3), 6e4, dtype=torch.float16)})
    with pytest.raises(ValueError, match="layer scalar is not finite"):
        check({"scalar": torch.tensor(-1e39, dtype=torch.float64)})


def test_one_thread_works_and_their_number_is_given_back() -> None:
    given, seen = torch.get_num_threads(), []

    def rule(values: Sequence[torch.Tensor]) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return values[0].double()

    torch.set_num_threads(3)
    try:
        combine_layers([transport.encode_tensors(model(0))], rule)
        with pytest.raises(ValueError, match="not finite"):
            check({"scalar": torch.tensor(torch.nan)})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(given)
    assert set(seen) == {1}
