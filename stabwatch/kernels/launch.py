"""What the fused kernels share: how many programs a device takes, where they run, and the second stage.

A reduction has two stages and no atomics, so that equal inputs give equal bits. Each program of the first writes
its partials, fields x programs; the second folds them in a fixed order.
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
"""With a type of its own, which triton's lacks."""
WAVES = 4
"""Programs for each multiprocessor: enough to hide the latency of memory and to even out the tail."""
FOLD_FIELDS, FOLD = 8, 512
"""Fields and programs that are folded at once."""


@lru_cache(maxsize=64)
def programs(device: torch.device) -> int:
    """How many programs fill the device."""
    if device.type != "cuda":
        return 4  # the interpreter runs them one after the other
    return WAVES * torch.cuda.get_device_properties(device).multi_processor_count


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def dense(x: Tensor) -> Tensor:
    """`x` itself if its elements fill one stretch of memory in any order, else a contiguous copy."""
    if x.is_contiguous():
        return x
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def update(partials: Tensor, out: Tensor, sums: int, starts: Tensor | None = None, merge: bool = False) -> None:
    """Fold partials into out (rows, fields): the first `sums` fields are added up, of the others the maximum is taken.

    partials: float32 (rows, fields, programs); or (fields, programs) with starts, int64 (rows + 1,), where row r owns
    the programs starts[r] to starts[r + 1]. merge: what `out` holds already takes part.
    """
    rows, fields = out.shape
    row_stride = partials.stride(0) if partials.dim() == 3 else 0
    with on(out.device):
        _update[(rows, triton.cdiv(fields, FOLD_FIELDS))](
            partials, starts, out, partials.shape[-1], row_stride, partials.stride(-2), fields,
            SUMS=sums, MERGE=merge, FIELDS=FOLD_FIELDS, BLOCK=FOLD, num_warps=8,
        )  # fmt: skip


@jit
def _update(
    partials: tl.tensor,
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
    source = partials + row * row_stride + field[:, None] * field_stride
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
"""Decided when the kernels are defined: later changes of TRITON_INTERPRET have no effect."""
