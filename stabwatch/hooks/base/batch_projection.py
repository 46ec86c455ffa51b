"""A batch in some numbers: by their means over many batches one sees when the data become other ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE = 16
READ = 1 << 12
"""Numbers of a batch that are read, evenly spread."""
TINY = 1e-30
_TABLE = np.random.default_rng(16).choice(np.array([-1.0, 1.0], np.float32), (SIZE, 1 << 12))
_ROWS = np.ascontiguousarray(_TABLE.T)
_ONES = np.ones(2 * READ, np.float32)


def spread_over(batch: NDArray[Any], most: int) -> tuple[NDArray[Any], int]:
    """About so many numbers of a batch, evenly spread, and the step from one to the next."""
    stride = batch.size // most | 1  # odd: not the same column of each row
    flat = batch.reshape(-1) if batch.flags.c_contiguous else batch.flat  # no copy of the batch
    return flat[::stride], stride


class BatchNumbers(NamedTuple):
    """Some numbers of a batch, copied: the training may write into it. stride: every so many of them.

    width: numbers of a sample.
    """

    some: bytes
    dtype: np.dtype[Any]
    stride: int
    width: int


def numbers_of(batch: NDArray[Any] | None) -> BatchNumbers | None:
    """What `project` needs of a batch; None without one."""
    if batch is None or not batch.ndim:
        return None
    some, stride = spread_over(batch, READ)
    return BatchNumbers(some.tobytes(), batch.dtype, stride, max(1, batch.size // len(batch)))


def project(batch: BatchNumbers) -> NDArray[np.float32]:
    """float32 (2 + SIZE,): log2 of the numbers of a sample, of the mean square of floats, and means with random signs.

    A number of a float counts with the sign of its column, a whole number (a token, a category) with that of its value.
    Noise of mean zero moves no mean: that is what the mean square is for.
    """
    some, stride, width = np.frombuffer(batch.some, batch.dtype), batch.stride, batch.width
    out = np.empty(2 + SIZE, np.float32)
    out[:2] = np.log2(width), 0.0
    if some.dtype.kind == "f":
        numbers = some.astype(np.float32, copy=False)
        out[1] = np.log2(np.dot(numbers, numbers) / len(some) + TINY)
        out[2:] = _signs(len(some), stride, width) @ numbers / len(some)
    else:  # the sums of ones are exact, in whatever order
        rows = _ROWS.take(some.astype(np.int64, copy=False) & 0xFFF, axis=0)
        out[2:] = _ONES[: len(rows)] @ rows / np.float32(len(rows))
    return out


@lru_cache(maxsize=16)
def _signs(count: int, stride: int, width: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(_TABLE[:, np.arange(count) * stride % width & 0xFFF])
