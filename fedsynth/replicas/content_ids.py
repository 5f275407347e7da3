"""Content ids: a hash of what arrays hold, whatever file or message they lie in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import torch


def content_id(arrays: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, in hexadecimal digits, over sorted (name, dtype, shape, little-endian bytes).

    Not over a file: the order of what a safetensors file says of itself is not fixed. Two sets of arrays have the same
    id only if they have the same names, dtypes, shapes and bits: zeros of either sign differ.

    Args:
        arrays: tensors by name, on any device.
    """
    found = sha256()
    for name in sorted(arrays):
        values = arrays[name].detach().cpu().contiguous().numpy()
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        head = json.dumps([name, str(arrays[name].dtype).removeprefix("torch."), list(values.shape)])
        # Lengths first: no name can run into the bytes of another array.
        found.update(b"%d %d\n%b" % (len(head.encode()), values.nbytes, head.encode()))
        found.update(np.ascontiguousarray(values).data.cast("B") if values.nbytes else b"")
    return found.hexdigest()
