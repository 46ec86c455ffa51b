"""Gradients of which each rank has a summand (a DTensor with a Partial placement): added up beside the training.

The norm of a sum does not follow from the norms of its summands. So the summands themselves travel with the row of a
step, and are added number by number where rows merge. On rank 0, what all ranks of a group have added up becomes
moments of its layers and norms of its parameter groups. A sum of fewer ranks is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Accumulator

Group = tuple[int, ...]
"""The ranks whose summands make one whole."""
NOWHERE = -1
"""The number of an accumulator that is none."""


class Transfer(Protocol):
    """Numbers on their way to the host."""

    def arrived(self) -> bool:
        """`wait` would not block."""

    def wait(self) -> NDArray[np.float32]:
        """The numbers."""


class Piece(NamedTuple):
    """A gradient that is a sum over ranks. ranks: whose summands it is made of; none where other ranks send it.

    layer, group: the accumulators that it belongs to. size: how many numbers this rank sends of it.
    """

    layer: Accumulator
    group: Accumulator | None
    ranks: Group
    size: int


@dataclass(frozen=True)
class Summands:
    """What one rank has of such gradients in a step. transfer: the numbers of all pieces, one after the other."""

    pieces: Sequence[Piece]
    transfer: Transfer | None

    @property
    def layers(self) -> frozenset[Accumulator]:
        """Accumulators that get their values by this."""
        return frozenset(piece.layer for piece in self.pieces)

    def named(self, names: Mapping[Accumulator, Accumulator]) -> Summands:
        """The same with other names of accumulators."""
        pieces = [p._replace(layer=names[p.layer], group=p.group and names[p.group]) for p in self.pieces]
        return Summands(pieces, self.transfer)

    def arrived(self) -> bool:
        """The numbers are there."""
        return self.transfer is None or self.transfer.arrived()


@dataclass(frozen=True)
class Sum:
    """What some ranks of a group have added up.

    cells: int32 (pieces, 3), the numbers of the accumulators of layer and group, and the size of each piece. values:
    float64, of all pieces; none where ranks of a group had different pieces. added: the number of ranks.
    """

    cells: NDArray[np.int32]
    values: NDArray[np.float64]
    added: int

    def whole(self, group: Group) -> bool:
        """All ranks of the group are in."""
        return self.added == len(group) and len(self.values) == self.cells[:, 2].sum()


Sums = Mapping[Group, Sum]


def sums_of(summands: Summands, numbers: Mapping[Accumulator, int]) -> Sums:
    """The sums over one rank. numbers: of the accumulators of a layout."""
    sizes = [piece.size for piece in summands.pieces]
    transferred = np.zeros(0) if summands.transfer is None else summands.transfer.wait().astype(np.float64)
    parts = np.split(transferred, np.cumsum(sizes)[:-1])
    found: dict[Group, list[tuple[Piece, NDArray[np.float64]]]] = {}
    for piece, part in zip(summands.pieces, parts, strict=True):
        if piece.ranks and piece.size:
            found.setdefault(piece.ranks, []).append((piece, part))
    return {ranks: _sum(mine, numbers) for ranks, mine in found.items()}


def _sum(mine: Sequence[tuple[Piece, NDArray[np.float64]]], numbers: Mapping[Accumulator, int]) -> Sum:
    cells = [(numbers[p.layer], NOWHERE if p.group is None else numbers[p.group], p.size) for p, _ in mine]
    return Sum(np.array(cells, np.int32), np.concatenate([part for _, part in mine]), 1)


def merged(a: Sums, b: Sums) -> Sums:
    """The sums over the ranks of both."""
    if not a or not b:
        return a or b
    return {**a, **{group: _added(a[group], each) if group in a else each for group, each in b.items()}}


def _added(a: Sum, b: Sum) -> Sum:
    if np.array_equal(a.cells, b.cells) and len(a.values) == len(b.values):
        return Sum(a.cells, a.values + b.values, a.added + b.added)
    return Sum(np.concatenate([a.cells, b.cells]), np.zeros(0), a.added + b.added)


@dataclass(frozen=True)
class Moments:
    """Of gradients. cells: int32 (n, 2), numbers of the accumulators of layer and group. The others are (n,)."""

    cells: NDArray[np.int32]
    count: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    nonfinite: NDArray[np.float64]
    abs_max: NDArray[np.float64]


def moments(found: Sum) -> Moments:
    """Moments of each piece of a sum that is whole. None of them is empty."""
    sizes = found.cells[:, 2]
    starts = np.cumsum(sizes) - sizes
    finite = np.isfinite(found.values)
    kept = np.where(finite, found.values, 0.0)
    sumsq, nonfinite = (np.add.reduceat(x, starts) for x in (kept * kept, (~finite).astype(np.float64)))
    return Moments(found.cells[:, :2], sizes.astype(float), sumsq, nonfinite, np.maximum.reduceat(np.abs(kept), starts))


def pack(sums: Sums) -> bytes:
    """For each group: how many ranks, how many were added, pieces and values; the ranks, the cells, float32 values."""
    blocks = []
    for group, each in sums.items():
        head = np.array([len(group), each.added, len(each.cells), len(each.values), *group], np.int32)
        blocks += [head.tobytes(), each.cells.tobytes(), each.values.astype(np.float32).tobytes()]
    return b"".join(blocks)


def unpack(block: bytes, at: int) -> Sums:
    """Inverse of `pack`, from a byte of a block on. Raises ValueError where there are not so many."""
    return dict(_unpacked(block, at)) if at < len(block) else {}


def _unpacked(block: bytes, at: int) -> Iterable[tuple[Group, Sum]]:
    while at < len(block):
        ranks, added, pieces, size = np.frombuffer(block, np.int32, 4, at).tolist()
        group = tuple(np.frombuffer(block, np.int32, ranks, at + 16).tolist())
        at += 16 + 4 * ranks
        cells = np.frombuffer(block, np.int32, 3 * pieces, at).reshape(-1, 3)
        at += 12 * pieces
        yield group, Sum(cells, np.frombuffer(block, np.float32, size, at).astype(np.float64), added)
        at += 4 * size
