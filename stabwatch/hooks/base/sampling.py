"""Which rows of a tensor are looked at when not all can be: one of each stretch, drawn once and for all.

Every so many rows would not do: heads, experts and sequences repeat at powers of two, and a sample that keeps step with
them sees the same place of each. What is a maximum (as the scale of the 8-bit formats) is that of the sample.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stabwatch.kernels.constants import stream, to_device

ELEMENTS = 1 << 16
"""Numbers of a tensor that tails and formats are judged by: whole tokens, or rows of a weight, evenly spread."""
ROUNDED = 1 << 13
"""The same of the errors of narrow formats, which are means of squares and no tails, and expensive to measure."""
FEWEST = 64
"""Where fewer whole rows would be seen, rows are cut into blocks first."""
BLOCK = 64
"""The longest block that shares a scale in a narrow format: none is cut in two."""


def spread(rows: Tensor, most: int) -> Tensor:
    """At most `most` rows, evenly spread: the same ones each time."""
    return rows if len(rows) <= most else rows.index_select(0, places(len(rows), most, rows.device))


def some_rows(x: Tensor, most: int = ELEMENTS) -> Tensor:
    """(N, D) of at most `most` numbers of a tensor, evenly spread: whole rows, or whole blocks of long ones.

    Of a long row the last numbers that fill no block are left out.
    """
    rows = x.flatten(1) if x.dim() > 1 else x.reshape(1, -1)
    if x.numel() <= most:
        return rows
    if rows.shape[1] * FEWEST <= most:
        return spread(rows, most // rows.shape[1])
    blocks = rows[:, : rows.shape[1] // BLOCK * BLOCK].unflatten(1, (-1, BLOCK))
    chosen = places(blocks.shape[0] * blocks.shape[1], most // BLOCK, x.device)
    return blocks[chosen.div(blocks.shape[1], rounding_mode="floor"), chosen % blocks.shape[1]]


def places(count: int, most: int, device: torch.device) -> Tensor:
    """int64 (n,), n <= most: numbers of rows among `count`, on the device; not to be written to."""
    return _kept(count, min(count, most), device, stream(device))


@lru_cache(maxsize=256)
def _kept(count: int, most: int, device: torch.device, of_stream: int) -> Tensor:
    ends = np.arange(most + 1) * count // most
    return to_device(np.random.default_rng(0).integers(ends[:-1], ends[1:]).tolist(), torch.int64, device)
