"""Shared code of the fused kernels: number of programs, device, and the second stage.

A reduction has two stages and no atomics, so equal inputs give equal bits. Each program of the first stage writes
its partial aggregates, fields x programs; the second stage merges them in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Callable[..., Any]], Any] = triton.jit
"""`triton.jit` with a type."""
WAVES = 4
"""Programs per multiprocessor: enough to hide memory latency and to balance the last wave."""
FOLD_FIELDS, FOLD = 8, 512
"""Fields and programs that are merged at once."""


@lru_cache(maxsize=64)
def programs(device: torch.device) -> int:
    """Number of programs that fill the device."""
    if device.type != "cuda":
        return 4  # the interpreter runs them one after the other
    return WAVES * torch.cuda.get_device_properties(device).multi_processor_count


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a tensor's device current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def dense(x: Tensor) -> Tensor:
    """`x` if its elements fill one span of memory in any order, else a contiguous copy."""
    if x.is_contiguous():
        return x
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def update(aggregates: Tensor, out: Tensor, sums: int, starts: Tensor | None = None, merge: bool = False) -> None:
    """Merge partial aggregates into out (rows, fields): sums of the first `sums` fields, maxima of the others.

    aggregates: float32 (rows, fields, programs); or (fields, programs) with starts, int64 (rows + 1,), where row r has
    the programs starts[r] to starts[r + 1]. merge: include the values already in `out`.
    """
    rows, fields = out.shape
    row_stride = aggregates.stride(0) if aggregates.dim() == 3 else 0
    with on(out.device):
        _update[(rows, triton.cdiv(fields, FOLD_FIELDS))](
            aggregates, starts, out, aggregates.shape[-1], row_stride, aggregates.stride(-2), fields,
            SUMS=sums, MERGE=merge, FIELDS=FOLD_FIELDS, BLOCK=FOLD, num_warps=8,
        )  # fmt: skip


@jit
def _update(
    aggregates: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    row_stride: tl.tensor,
    field_stride: tl.tensor,
    fields: tl.tensor,
    SUMS: tl.constexpr,
    MERGE: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    field = tl.program_id(1).to(tl.int64) * FIELDS + tl.arange(0, FIELDS)
    first = tl.full((), 0, tl.int64)
    last = first + n
    if starts is not None:
        first = tl.load(starts + row)
        last = tl.load(starts + row + 1)
    source = aggregates + row * row_stride + field[:, None] * field_stride
    total = tl.full((FIELDS, BLOCK), 0.0, tl.float64)  # a few thousand numbers: float64 costs nothing here
    peak = tl.full((FIELDS, BLOCK), float("-inf"), tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        held = (field[:, None] < fields) & (at < last)
        value = tl.load(source + at, mask=held, other=0.0)
        total += value.to(tl.float64)
        peak = tl.maximum(peak, tl.where(held, value, float("-inf")))
    target = out + row * fields + field
    added = tl.sum(total, axis=1).to(tl.float32)
    highest = tl.max(peak, axis=1)
    if MERGE:
        old = tl.load(target, mask=field < fields, other=0.0)
        added += old
        highest = tl.maximum(highest, old)
    tl.store(target, tl.where(field < SUMS, added, highest), mask=field < fields)


INTERPRETED: bool = not isinstance(_update, triton.JITFunction)
"""Set when the kernels are defined; later changes of TRITON_INTERPRET have no effect."""
