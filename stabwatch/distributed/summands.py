"""Gradients of which each rank has a summand (a DTensor with a Partial placement): added up beside the training.

The norm of a sum does not follow from the norms of its summands. So sketches of the summands travel with the row of a
step, and are added number by number where rows merge. A sketch (CountSketch) has a number of buckets: each number of
the gradient has a bucket and a sign, the same on all ranks that have a summand of it, and a bucket is the sum of its
numbers with their signs. So the sketch of a sum is the sum of sketches, and its squared norm is that of the sum on
average. Where there are as many buckets as numbers it is exact. Otherwise it has a relative standard deviation of
sqrt(2 / buckets), and the norm one of half of that. Ranks that have other parts of a gradient have signs and buckets of
their own: what they send goes into the same sketch, so that its size does not depend on the number of ranks.

On rank 0, what all ranks have added up becomes moments of its layers and norms of its parameter groups. A sum of fewer
ranks is not used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Accumulator

Group = tuple[int, int]
"""How many ranks send something of a gradient, and a hash of which."""
NOWHERE = -1
"""The number of an accumulator that is none."""
LEAST = 16
"""Fewest buckets of a gradient that is not exact: its norm has a standard deviation of 18 %."""
OVERHEAD = 8
"""Numbers that a piece takes in a block besides its buckets."""


class Place(NamedTuple):
    """Where in a gradient what a rank has of it belongs.

    ranks: all that send something of it; none where other ranks send what this one has. shard: the number of the part
    that this rank has a summand of. shards: the number of parts. size: most numbers of a part.
    """

    ranks: tuple[int, ...]
    shard: int
    shards: int
    size: int

    @property
    def group(self) -> Group | None:
        """Of the ranks that send something."""
        return (len(self.ranks), zlib.crc32(repr(self.ranks).encode()) >> 1) if self.ranks else None

    @property
    def space(self) -> int:
        """Buckets of which each is one number."""
        return self.shards * self.size


def buckets(spaces: Sequence[int], room: int) -> list[int]:
    """How many buckets each of some gradients gets: as many as it needs to be exact, or else a fair share of the room.

    spaces: how many each needs to be exact. room: numbers that go with a record.
    """
    found, left = [0] * len(spaces), room - OVERHEAD * len(spaces)
    for place, i in enumerate(sorted(range(len(spaces)), key=spaces.__getitem__)):
        found[i] = min(spaces[i], max(LEAST, left // (len(spaces) - place)))
        left -= found[i]
    return found


def deviation(size: int) -> float:
    """The relative standard deviation of a norm that is estimated from so many buckets."""
    return 0.5 * math.sqrt(2 / size)


class Transfer(Protocol):
    """Numbers on their way to the host."""

    def arrived(self) -> bool:
        """`wait` would not block."""

    def wait(self) -> NDArray[np.float32]:
        """The numbers."""


class Piece(NamedTuple):
    """A gradient that is a sum over ranks. ranks: that send something of it; none where other ranks send it.

    layer, group: the accumulators that it belongs to. size: buckets of its sketch. elements: how many numbers all of
    it has; as many as buckets, or fewer, where it is exact.
    """

    layer: Accumulator
    group: Accumulator | None
    ranks: Group | None
    size: int
    elements: int


@dataclass(frozen=True)
class Summands:
    """What one rank has of such gradients in a step. transfer: the sketches of all pieces that it sends."""

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

    cells: int64 (pieces, 4), the numbers of the accumulators of layer and group, and size and count of each piece.
    values: float64, the sketches of all pieces; none where ranks of a group had different pieces. added: how many
    ranks.
    """

    cells: NDArray[np.int64]
    values: NDArray[np.float64]
    added: int

    def whole(self, group: Group) -> bool:
        """All ranks of the group are in."""
        return self.added == group[0] and len(self.values) == self.cells[:, 2].sum()


Sums = Mapping[Group, Sum]


def sums_of(summands: Summands, numbers: Mapping[Accumulator, int]) -> Sums:
    """The sums over one rank. numbers: of the accumulators of a layout."""
    sent = [piece for piece in summands.pieces if piece.ranks]
    transferred = np.zeros(0) if summands.transfer is None else summands.transfer.wait().astype(np.float64)
    parts = np.split(transferred, np.cumsum([piece.size for piece in sent])[:-1]) if sent else []
    found: dict[Group, list[tuple[Piece, NDArray[np.float64]]]] = {}
    for piece, part in zip(sent, parts, strict=True):
        assert piece.ranks is not None
        found.setdefault(piece.ranks, []).append((piece, part))
    return {ranks: _sum(mine, numbers) for ranks, mine in found.items()}


def _sum(mine: Sequence[tuple[Piece, NDArray[np.float64]]], numbers: Mapping[Accumulator, int]) -> Sum:
    cells = [(numbers[p.layer], NOWHERE if p.group is None else numbers[p.group], p.size, p.elements) for p, _ in mine]
    return Sum(np.array(cells, np.int64), np.concatenate([part for _, part in mine]), 1)


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
    """Of gradients. cells: int64 (n, 2), numbers of the accumulators of layer and group. The others are (n,).

    Of an estimate, the largest number is not known (NaN), and `nonfinite` is the number of buckets.
    """

    cells: NDArray[np.int64]
    count: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    nonfinite: NDArray[np.float64]
    abs_max: NDArray[np.float64]


def moments(found: Sum) -> Moments:
    """Moments of each piece of a sum that is whole. None of them is empty."""
    sizes, counts = found.cells[:, 2], found.cells[:, 3]
    starts = np.cumsum(sizes) - sizes
    finite = np.isfinite(found.values)
    kept = np.where(finite, found.values, 0.0)
    sumsq, nonfinite = (np.add.reduceat(x, starts) for x in (kept * kept, (~finite).astype(np.float64)))
    largest = np.where(sizes >= counts, np.maximum.reduceat(np.abs(kept), starts), np.nan)
    return Moments(found.cells[:, :2], counts.astype(float), sumsq, nonfinite, largest)


def pack(sums: Sums) -> bytes:
    """For each group: itself, how many ranks were added, pieces and values; the cells, float32 values."""
    blocks = []
    for group, each in sums.items():
        head = np.array([*group, each.added, len(each.cells), len(each.values)], np.int32)
        blocks += [head.tobytes(), each.cells.tobytes(), each.values.astype(np.float32).tobytes()]
    return b"".join(blocks)


def unpack(block: bytes, at: int) -> Sums:
    """Inverse of `pack`, from a byte of a block on. Raises ValueError where there are not so many."""
    return dict(_unpacked(block, at)) if at < len(block) else {}


def _unpacked(block: bytes, at: int) -> Iterable[tuple[Group, Sum]]:
    while at < len(block):
        ranks, which, added, pieces, size = np.frombuffer(block, np.int32, 5, at).tolist()
        at += 20
        cells = np.frombuffer(block, np.int64, 4 * pieces, at).reshape(-1, 4)
        at += 32 * pieces
        yield (ranks, which), Sum(cells, np.frombuffer(block, np.float32, size, at).astype(np.float64), added)
        at += 4 * size
