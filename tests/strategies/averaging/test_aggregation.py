from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fedsynth.averaging import combine_layers
from fedsynth.averaging.checks import LARGEST_WEIGHT
from fedsynth.averaging.layers import chunk_length
from fedsynth.messages import transport
from strategies.averaging.aggregation import (
    check_combined,
    check_model,
    shapes,
    weighted_mean,
)


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
    for seed, one in enumerate(models):
        # Longer than what is worked on at once.
        one["long"] = torch.randn(2, chunk_length(5) + 7, generator=torch.Generator().manual_seed(seed))
    mean = transport.decode_tensors(weighted_mean([transport.encode_tensors(one) for one in models], weights))
    for name, value in mean.items():
        exact = sum(w * m[name].numpy().astype(np.float64) for m, w in zip(models, weights, strict=True)) / sum(weights)
        assert value.dtype == models[0][name].dtype
        expected = np.round(exact) if name == "steps" else exact
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7, atol=1e-12)


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


def test_check_model_takes_any_precision_but_no_other_kind_of_number() -> None:
    check({"weight": torch.ones(4, 3, dtype=torch.float64)})
    check({"weight": torch.full((4, 3), 6e4, dtype=torch.float16)})
    check({"weight": torch.full((4, 3), -LARGEST_WEIGHT)})
    check({"steps": torch.tensor([2**53, -(2**53)])})
    for changed, said in (
        ({"weight": torch.ones(4, 3, dtype=torch.int64)}, "layer weight holds int64 numbers, not floating-point"),
        ({"steps": torch.ones(2)}, "layer steps holds floating-point numbers, not int64"),
        ({"steps": torch.ones(2, dtype=torch.int8)}, "layer steps holds int8 numbers, not int64"),
        ({"scalar": torch.tensor(-1e39, dtype=torch.float64)}, "layer scalar holds a number of size 1e.39"),
        ({"scalar": torch.tensor(3e38)}, "layer scalar holds a number of size 3e.38: must be <= 1e.06"),
        ({"scalar": torch.tensor(-1.001e6)}, "layer scalar holds a number of size"),
        ({"steps": torch.tensor([0, -(2**62)])}, "layer steps holds a number of size 4.61e.18: must be <= 9.01e.15"),
    ):
        with pytest.raises(ValueError, match=said):
            check(changed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_check_model_finds_what_is_not_finite_wherever_it_is(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value, position in itertools.product((torch.nan, torch.inf, -torch.inf), range(12)):
            layer = torch.ones(12, dtype=dtype)
            layer[position] = value
            with pytest.raises(ValueError, match="layer weight is not finite"):
                check({"weight": layer.view(4, 3)})


def test_a_combined_model_must_be_one() -> None:
    check_combined(transport.encode_tensors(model(0)))
    for bad in (torch.nan, torch.inf, -2e6):
        with pytest.raises(ValueError, match="layer scalar"):
            check_combined(transport.encode_tensors({**model(0), "scalar": torch.tensor(bad)}))


def test_one_thread_works_and_their_number_is_given_back() -> None:
    given, seen = torch.get_num_threads(), []

    def rule(values: Sequence[torch.Tensor]) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return values[0].double()

    torch.set_num_threads(3)
    try:
        combine_layers([model(0)], rule)
        with pytest.raises(ValueError, match="not finite"):
            check({"scalar": torch.tensor(torch.nan)})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(given)
    assert set(seen) == {1}
