"""A batch in sixteen numbers: by their means over many batches one sees when the data become other ones."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.actions import FEWEST, TYPES
from stabwatch.hooks.base.tensors import is_plain
from stabwatch.kernels.where import on_host

SIZE = 16
READ = 1 << 12
"""Numbers of a batch that are read, evenly spread."""
_TABLE = np.random.default_rng(16).choice(np.array([-1.0, 1.0], np.float32), (SIZE, 1 << 12))


def project(inputs: Iterable[Any]) -> NDArray[np.float32] | None:
    """float32 (1 + SIZE,): log2 of the numbers of a sample, and means with random signs; None for no batch on the host.

    A number of a float counts with the sign of its column, a whole number (a token, a category) with that of its value.
    """
    batch = next((x for x in inputs if isinstance(x, Tensor) and is_plain(x) and x.numel() >= FEWEST), None)
    if batch is None or not on_host(batch) or batch.dtype not in TYPES or not batch.dim():
        return None
    whole = batch.detach().numpy()
    stride = whole.size // READ | 1  # odd: not the same column of each row
    flat = whole.reshape(-1) if whole.flags.c_contiguous else whole.flat  # no copy of the batch
    some, width = flat[::stride], max(1, whole.size // len(batch))
    out = np.empty(1 + SIZE, np.float32)
    out[0] = np.log2(width)
    if np.issubdtype(whole.dtype, np.floating):
        out[1:] = _signs(len(some), stride, width) @ some.astype(np.float32, copy=False) / len(some)
    else:
        counts = np.bincount(some.astype(np.int64, copy=False) & 0xFFF, minlength=_TABLE.shape[1])
        out[1:] = _TABLE @ counts.astype(np.float32) / len(some)
    return out


@lru_cache(maxsize=16)
def _signs(count: int, stride: int, width: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(_TABLE[:, np.arange(count) * stride % width & 0xFFF])
