"""Triton: all tensors of a list in one launch per data type, and one launch that merges.

Each tensor is cut into chunks, one program each. One table assigns chunks to programs; another has the addresses of
the tensors. The first depends only on the sizes and is built once. The second is copied through pinned memory when a
tensor has moved. Partial aggregates are stored in order of group, so a group is merged without atomics.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.constants import device_constant, stream, to_device
from stabwatch.kernels.launch import dense, jit, on, update
from stabwatch.kernels.moments.fused import BLOCK, FULL_FIELDS, reduce_chunk, tiles_of

KINDS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
ALIGNMENT = 16
"""Bytes that one thread loads at once."""


def takes_moments(tensors: Sequence[Tensor], out: Tensor) -> bool:
    """Whether `grouped_moments` can reduce these."""
    return all(x.dtype in KINDS and x.device == out.device for x in tensors)


def takes_change(before: Sequence[Tensor], after: Sequence[Tensor], out: Tensor) -> bool:
    """Whether `grouped_change` can reduce these. Not in float64: an update may be too small for float32."""
    pairs = [*before, *after]
    return (
        takes_moments(pairs, out)
        and all(x.dtype != torch.float64 for x in pairs)
        and all(dense(b) is b for b in before)
    )


def grouped_moments(tensors: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Merge the moments of each tensor into row `group[i]` of `out`: float32 (groups, 4), or (groups, 7) for all."""
    tensors = [dense(x) for x in tensors]
    plan = _plan_of(tensors, [x.dtype for x in tensors], group, out)
    pointers, aligned = _pointers(tensors)
    aggregates = torch.empty((out.shape[1], plan.columns), dtype=torch.float32, device=out.device)
    with on(out.device):
        for kind, work in plan.work:
            _moments[(work.shape[1],)](
                pointers, plan.sizes, work, work.shape[1], aggregates, plan.columns, plan.tiles,
                KIND=KINDS[kind], ALIGNED=aligned, FULL=out.shape[1] == FULL_FIELDS, BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
    update(aggregates, out, sums=out.shape[1] - 1, starts=plan.starts, merge=True)


def grouped_change(before: Sequence[Tensor], after: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Add count, sum of squares of the change and of the old tensor to row `group[i]` of `out`: float32 (groups, 3).

    Overwrites the tensors of `before` with the change.
    """
    after = [a.detach() if a.stride() == b.stride() else torch.empty_like(b, dtype=a.dtype).copy_(a.detach())
             for a, b in zip(after, before, strict=True)]  # fmt: skip
    plan = _plan_of(before, [(b.dtype, a.dtype) for b, a in zip(before, after, strict=True)], group, out)
    old, old_aligned = _pointers(before)
    new, new_aligned = _pointers(after)
    aggregates = torch.empty((3, plan.columns), dtype=torch.float32, device=out.device)
    with on(out.device):
        for (old_kind, new_kind), work in plan.work:
            _change[(work.shape[1],)](
                old, new, plan.sizes, work, work.shape[1], aggregates, plan.columns, plan.tiles,
                OLD=KINDS[old_kind], NEW=KINDS[new_kind], ALIGNED=old_aligned and new_aligned, BLOCK=BLOCK,
            )  # fmt: skip
    update(aggregates, out, sums=3, starts=plan.starts, merge=True)


@dataclass(frozen=True)
class Plan:
    """Chunks assigned to programs. work, by dtype: int64 (3, programs): tensor, output column, chunk in the tensor.

    starts: int64 (groups + 1,), the columns of each group. sizes: int64 (tensors,).
    """

    tiles: int
    columns: int
    work: tuple[tuple[Any, Tensor], ...]
    sizes: Tensor
    starts: Tensor


def _plan_of(tensors: Sequence[Tensor], kinds: Sequence[Hashable], group: Sequence[int], out: Tensor) -> Plan:
    sizes = tuple(x.numel() for x in tensors)
    return _plan(sizes, tuple(kinds), tuple(group), len(out), out.device, stream(out.device))


@lru_cache(maxsize=16)
def _plan(
    sizes: tuple[int, ...],
    kinds: tuple[Hashable, ...],
    group: tuple[int, ...],
    groups: int,
    device: torch.device,
    of_stream: int,
) -> Plan:
    tiles = tiles_of(sum(sizes), device)
    chunks = [triton.cdiv(n, tiles * BLOCK) for n in sizes]
    work: dict[Hashable, list[tuple[int, int, int]]] = {}
    per_group = [0] * groups
    column = 0
    for i in sorted(range(len(sizes)), key=group.__getitem__):
        work.setdefault(kinds[i], []).extend((i, column + chunk, chunk) for chunk in range(chunks[i]))
        column += chunks[i]
        per_group[group[i]] += chunks[i]
    tables = tuple((kind, _table(zip(*rows, strict=True), device).view(3, -1)) for kind, rows in work.items() if rows)
    return Plan(tiles, column, tables, _table([sizes], device), _table([accumulate(per_group, initial=0)], device))


def _pointers(tensors: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Addresses of the tensors, and whether all of them are aligned."""
    addresses = tuple(x.data_ptr() for x in tensors)
    aligned = all(address % ALIGNMENT == 0 for address in addresses)
    return device_constant(addresses, torch.int64, tensors[0].device), aligned


def _table(rows: Iterable[Iterable[int]], device: torch.device) -> Tensor:
    return to_device([n for row in rows for n in row], torch.int64, device)


@jit
def _moments(
    pointers: tl.tensor,
    sizes: tl.tensor,
    work: tl.tensor,
    programs: tl.tensor,
    aggregates: tl.tensor,
    columns: tl.tensor,
    tiles: tl.tensor,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    tensor = tl.load(work + program)
    column = tl.load(work + programs + program)
    start = tl.load(work + 2 * programs + program) * tiles * BLOCK
    x = tl.load(pointers + tensor).to(tl.pointer_type(KIND))
    if ALIGNED:
        x = tl.multiple_of(x, 16)
    reduce_chunk(x, tl.load(sizes + tensor), start, tiles, aggregates + column, columns, FULL, BLOCK)


@jit
def _change(
    old: tl.tensor,
    new: tl.tensor,
    sizes: tl.tensor,
    work: tl.tensor,
    programs: tl.tensor,
    aggregates: tl.tensor,
    columns: tl.tensor,
    tiles: tl.tensor,
    OLD: tl.constexpr,
    NEW: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    tensor = tl.load(work + program)
    column = tl.load(work + programs + program)
    start = tl.load(work + 2 * programs + program) * tiles * BLOCK
    before = tl.load(old + tensor).to(tl.pointer_type(OLD))
    after = tl.load(new + tensor).to(tl.pointer_type(NEW))
    if ALIGNED:
        before = tl.multiple_of(before, 16)
        after = tl.multiple_of(after, 16)
    held = tl.minimum(tl.load(sizes + tensor) - start, tiles * BLOCK)
    changes = tl.full((BLOCK,), 0.0, tl.float32)
    squares = tl.full((BLOCK,), 0.0, tl.float32)
    lanes = tl.arange(0, BLOCK)
    for tile in range(held // BLOCK):  # without a mask, so that loads are 16 bytes wide for any size
        at = start + tile * BLOCK + lanes
        was = tl.load(before + at).to(tl.float32)
        change = was - tl.load(after + at).to(tl.float32)
        tl.store(before + at, change.to(OLD))
        changes += change * change
        squares += was * was
    if held % BLOCK != 0:
        at = start + held // BLOCK * BLOCK + lanes
        inside = at < start + held
        was = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
        change = was - tl.load(after + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(before + at, change.to(OLD), mask=inside)
        changes += change * change
        squares += was * was
    tl.store(aggregates + column, held.to(tl.float32))
    tl.store(aggregates + columns + column, tl.sum(changes, axis=0))
    tl.store(aggregates + 2 * columns + column, tl.sum(squares, axis=0))
