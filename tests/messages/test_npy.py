from __future__ import annotations

import io

import numpy as np
import pytest

from fedsynth.messages import npy


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_bytes_are_numpy_s_own_and_are_read_back_in_place(shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(3).integers(0, 200, shape).astype(dtype)
    file = io.BytesIO()
    np.save(file, values)
    data = npy.dumps(values)
    assert data == file.getvalue()
    back = npy.view(data)
    np.testing.assert_array_equal(back, values)
    assert back.dtype == values.dtype
    assert not back.flags.writeable
    assert values.size == 0 or np.shares_memory(back, np.frombuffer(data, np.uint8))


def test_column_order_and_other_versions_of_the_format_are_read() -> None:
    values = np.arange(6.0).reshape(2, 3)
    for given, version in ((np.asfortranarray(values), (1, 0)), (values, (2, 0))):
        file = io.BytesIO()
        np.lib.format.write_array(file, given, version)
        np.testing.assert_array_equal(npy.view(file.getvalue()), values)
