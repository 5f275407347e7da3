from __future__ import annotations

import hashlib

import numpy as np
import torch

from fedsynth.replicas.content_ids import content_id

ONE = {"b": torch.arange(6, dtype=torch.float32).view(2, 3), "a": torch.tensor(3)}


def test_an_id_is_of_names_dtypes_shapes_and_bytes_in_the_order_of_names() -> None:
    written = b""
    for head, values in (
        ('["a", "int64", []]', np.array(3, "<i8")),
        ('["b", "float32", [2, 3]]', np.arange(6, dtype="<f4")),
    ):
        written += f"{len(head)} {values.nbytes}\n{head}".encode() + values.tobytes()
    assert content_id(ONE) == hashlib.sha256(written).hexdigest()
    assert content_id(dict(reversed(ONE.items()))) == content_id(ONE)
    # How it lies in memory makes no difference.
    assert content_id({**ONE, "b": ONE["b"].T.contiguous().T}) == content_id(ONE)
    assert content_id({}) == hashlib.sha256().hexdigest()


def test_whatever_differs_gives_another_id() -> None:
    others = [
        {**ONE, "b": ONE["b"].view(3, 2)},
        {**ONE, "b": ONE["b"].double()},
        {**ONE, "b": torch.nextafter(ONE["b"], torch.tensor(9.0))},
        {**ONE, "b": ONE["b"] * torch.tensor(-1.0).where(ONE["b"] == 0, torch.tensor(1.0))},
        {**ONE, "c": torch.zeros(0)},
        {"b": ONE["b"], "aa": ONE["a"]},
        {"b": ONE["b"]},
    ]
    assert len({content_id(one) for one in [ONE, *others]}) == len(others) + 1
