"""What ranks merge: partial aggregates of one step, and the operators that merge two of them.

A row has the accumulators of a RecordLayout. On the wire its fields are sorted by operator, so that merging two rows
is one addition, one maximum, one minimum and one choice of indices, and only accumulators that were measured travel.

An accumulator is of one of three kinds over ranks:

- *own*: each rank measured its own data (activations, the loss). Merged by the reduction's operators over the ranks
  that measured it, and valid only if no rank failed to.
- *replicated*: every rank has the same (gradients and weights of replicas). Merged by maximum of each field, which
  is the value itself when the ranks agree.
- *part*: each rank has a part of one whole (shards). Merged by the reduction's operators, and valid only if every
  rank that has a part measured it, because a sum over some of the parts is not a value. `lacking` marks that.

Merging is associative and commutative and has an identity (no rank): any tree gives the same result, up to the
rounding of float64 sums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed import summands as sums
from stabwatch.distributed.summands import Summands, Sums
from stabwatch.distributed.tree import FAN_OUT, RankSet, union
from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.signals.reductions import IDENTITY, Op

Kind = Literal["own", "replicated", "part"]
Row = NDArray[np.float64]
COMPARING = ("rank_busy", "rank_data", "rank_loss", "rank_nonfinite", "replica_")
"""How the taps of accumulators begin that compare ranks."""
CHECKS = ("checksum", "buffer_checksum")
"""Taps of what equal replicas share, from which ranks are compared; it is not written to the log."""
ROUNDING = 1e-6
RECEIVED = 1_000_000
"""Bytes of a record that a rank may receive: sketches of gradients (see summands.py) take what is left of them."""
_ORDER: tuple[Op, ...] = ("sum", "max", "min", "arg")


@dataclass(frozen=True)
class Partial:
    """Partial aggregates of one step over some ranks.

    values: float64 (fields,), sorted by operator, the identity where not measured. lacking: bool (accumulators,), parts
    that a rank has and did not measure, and what a rank could not measure because its probe failed. sums: of gradients
    of which each rank has a summand (see summands.py).
    """

    ranks: RankSet
    values: Row
    lacking: NDArray[np.bool_]
    sums: Sums = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The memory that its numbers take."""
        return self.values.nbytes + sum(each.values.nbytes for each in self.sums.values())


class MergeLayout:
    """A RecordLayout with the kind of each accumulator over ranks.

    kinds: of accumulators that are not 'own'. holds: the parts of which this rank has any. group: the ranks that are
    given the same data as this one, see `Copies`.
    """

    def __init__(
        self,
        layout: RecordLayout,
        kinds: Mapping[Accumulator, Kind],
        holds: frozenset[Accumulator],
        group: tuple[int, ...] = (),
    ) -> None:
        self.layout = layout
        self.group = group
        self._kinds = [kinds.get(accumulator, "own") for accumulator in layout.accumulators]
        same = np.repeat([kind == "replicated" for kind in self._kinds], [len(f) for f in layout.fields])
        ops = [
            "max" if twin and op != "arg" else op
            for twin, op in zip(same, (op for fields in layout.fields for _, op in fields), strict=True)
        ]
        self._order = np.argsort([_ORDER.index(op) for op in ops], kind="stable")  # type: ignore[arg-type]
        self._back = np.argsort(self._order)
        ends = np.cumsum([ops.count(op) for op in _ORDER])
        self._sums, self._maxima, self._minima, self._args = (
            slice(int(a), int(b)) for a, b in zip((0, *ends[:-1]), ends, strict=True)
        )
        self._winners = self._back[self._order[self._args] - 1]
        self._identity = np.array([IDENTITY[op] for op in ops])[self._order]  # type: ignore[index]
        accumulators = np.repeat(np.arange(len(layout.accumulators)), [len(f) for f in layout.fields])
        self._cell = accumulators[self._order]
        self._starts = np.array(layout.starts, dtype=np.int64)
        self._counts = self._back[self._starts]
        self.numbers = {accumulator: i for i, accumulator in enumerate(layout.accumulators)}
        self._whole = np.array([kind != "part" for kind in self._kinds], dtype=bool)
        self.holds = holds
        self._holds = np.array([accumulator in holds for accumulator in layout.accumulators], dtype=bool) & ~self._whole
        self._own = np.array([kind == "own" for kind in self._kinds], dtype=bool)
        self.data = self._own & [not a.tap.startswith((*COMPARING, *CHECKS)) for a in layout.accumulators]
        """bool (accumulators,): those of the data that a rank is given, and not of parameters, nor of the rank."""
        self.has_parts = bool((~self._whole).any())

    @property
    def device_entries(self) -> list[tuple[Accumulator, Kind]]:
        """What is measured, without what compares ranks, with the kinds."""
        found = zip(self.layout.accumulators, self._kinds, strict=True)
        return [(a, kind) for a, kind in found if not a.tap.startswith(COMPARING)]

    @property
    def description(self) -> str:
        """All that has to be equal on two ranks that merge, as JSON."""
        accumulators = [
            [c.tap, c.site, c.reduction, kind] for c, kind in zip(self.layout.accumulators, self._kinds, strict=True)
        ]
        return json.dumps(accumulators, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """A hash of the description."""
        return hashlib.sha256(self.description.encode()).hexdigest()[:16]

    def partial(
        self,
        rank: int,
        row: NDArray[np.floating] | None,
        failed: frozenset[Accumulator] = frozenset(),
        summands: Summands | None = None,
    ) -> Partial:
        """What one rank measured in a step; row: (fields,) in the order of the table, None for nothing.

        failed: what it could not measure although it should have. summands: what it has of gradients that are sums
        over ranks. Raises ValueError when the row does not fit.
        """
        ranks = ((rank, rank + 1),)
        if row is None:
            return Partial(ranks, self._identity, self._holds)
        if len(row) != self.layout.width:
            raise ValueError(f"a row of {len(row)} fields for a layout of {self.layout.width}")
        values = np.asarray(row, dtype=np.float64)[self._order]
        present = values[self._counts] > 0
        values = np.where(present[self._cell], values, self._identity)
        lacking = self._holds & ~present
        if failed:
            lacking = lacking | (np.array([a in failed for a in self.layout.accumulators]) & self._own & ~present)
        if summands is None:
            return Partial(ranks, values, lacking)
        lacking = lacking.copy()
        lacking[[self.numbers[a] for a in summands.layers]] = False
        return Partial(ranks, values, lacking, sums.sums_of(summands, self.numbers))

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Partial aggregates over the ranks of both, which must be disjoint."""
        x, y = a.values, b.values
        out = np.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.add(x[self._sums], y[self._sums], out=out[self._sums])
            np.maximum(x[self._maxima], y[self._maxima], out=out[self._maxima])
            np.minimum(x[self._minima], y[self._minima], out=out[self._minima])
            best_x, best_y = x[self._winners], y[self._winners]
            i, j = x[self._args], y[self._args]
            more = (best_x > best_y) | (np.isnan(best_x) & ~np.isnan(best_y))
            tie = (best_x == best_y) | (np.isnan(best_x) & np.isnan(best_y))
        out[self._args] = np.where(more, i, np.where(tie, np.minimum(i, j), j))
        return Partial(union((a.ranks, b.ranks)), out, a.lacking | b.lacking, sums.merged(a.sums, b.sums))

    def row(self, partial: Partial, complete: bool, times: Row | None = None) -> Row:
        """(fields,) in the order of the table, NaN where not measured; parts only if all ranks are in (`complete`).

        times: of each accumulator, how many ranks have added the same (see `Copies`).
        """
        partial = self._summed(partial)
        present = self.present(partial)
        present &= ~partial.lacking & (self._whole | complete)
        values = partial.values
        if times is not None:
            values = values.copy()
            values[self._sums] /= times[self._cell[self._sums]]
        return np.where(present[self._cell], values, np.nan)[self._back]

    def _summed(self, partial: Partial) -> Partial:
        """With the moments of gradients whose summands have come from all ranks; others are lacking."""
        if not partial.sums:
            return partial
        values, lacking = partial.values.copy(), partial.lacking.copy()
        for group, each in partial.sums.items():
            if not each.whole(group):
                cells = each.cells[:, :2].ravel()
                lacking[cells[cells != sums.NOWHERE]] = True
                continue
            found = sums.moments(each)
            fields = [found.count, found.sumsq, found.nonfinite, found.abs_max]
            for cells, mine in zip(found.cells.T, (fields, fields[:2]), strict=True):
                known = cells != sums.NOWHERE
                for i, numbers in enumerate(mine):
                    places = self._back[self._starts[cells[known]] + i]
                    values[places] = np.maximum(values[places], 0.0)  # the identity of what replicas share is -inf
                    with np.errstate(invalid="ignore"):
                        (np.maximum if i == 3 else np.add).at(values, places, numbers[known])
        return Partial(partial.ranks, values, lacking)

    def present(self, partial: Partial) -> NDArray[np.bool_]:
        """bool (accumulators,): what was measured."""
        return partial.values[self._counts] > 0

    def only(self, partial: Partial, some: NDArray[np.bool_]) -> Partial:
        """Some accumulators of a partial."""
        return Partial(partial.ranks, np.where(some[self._cell], partial.values, self._identity), partial.lacking)

    def equal(self, a: Partial, b: Partial) -> NDArray[np.bool_]:
        """bool (accumulators,): all fields are the same in both, up to the rounding of float32."""
        x, y = a.values, b.values
        with np.errstate(invalid="ignore"):
            apart = ~((x == y) | (np.abs(x - y) <= ROUNDING * np.maximum(np.abs(x), np.abs(y))))
        apart &= ~(np.isnan(x) & np.isnan(y))
        return np.bincount(self._cell[apart], minlength=len(self.data)) == 0

    def pack(self, partial: Partial) -> bytes:
        """The numbers of a partial, without its ranks. Nothing is rounded but sums of gradients, to float32.

        Two bit sets over accumulators (measured, lacking), a bit for each number that was measured (float32 holds it),
        those numbers, and the others as float64. Ranks measure in float32; sums over several need more. Gradients that
        are sums over ranks come last.
        """
        present = self.present(partial)
        numbers = partial.values[present[self._cell]]
        with np.errstate(over="ignore"):
            short = numbers.astype(np.float32)
        exact = (short == numbers) | np.isnan(numbers)
        bits = [np.packbits(each).tobytes() for each in (present, partial.lacking, exact)]
        return b"".join((*bits, short[exact].tobytes(), numbers[~exact].tobytes(), sums.pack(partial.sums)))

    def unpack(self, ranks: RankSet, block: bytes) -> Partial:
        """Inverse of `pack`. Raises ValueError when the block is not of this layout."""
        accumulators = len(self.layout.accumulators)
        size = -(-accumulators // 8)
        present, lacking = (_bits(block, i * size, accumulators) for i in range(2))
        measured = present[self._cell]
        exact = _bits(block, 2 * size, int(measured.sum()))
        first = 2 * size + -(-len(exact) // 8)
        numbers = np.empty(len(exact))
        numbers[exact] = np.frombuffer(block, np.float32, int(exact.sum()), first)
        first += 4 * int(exact.sum())
        numbers[~exact] = np.frombuffer(block, np.float64, int((~exact).sum()), first)
        values = self._identity.copy()
        values[measured] = numbers
        return Partial(ranks, values, lacking, sums.unpack(block, first + 8 * int((~exact).sum())))


def room(layout: RecordLayout, stages: int) -> int:
    """Numbers that one rank may send with a record for sketches.

    layout: of the record of one of several stages, with as much in that of each other stage.
    """
    sums = sum(op == "sum" for fields in layout.fields for _, op in fields)
    most = 4 * (layout.width + sums) + (layout.width + 2 * len(layout.accumulators)) // 8 + 3
    return max(0, RECEIVED // FAN_OUT // stages - most) // 4


def _bits(block: bytes, first: int, number: int) -> NDArray[np.bool_]:
    """Some bits, from a byte of a block on. Raises ValueError where there are not so many."""
    found = np.frombuffer(block, np.uint8, -(-number // 8), first) if number else np.zeros(0, np.uint8)
    return np.unpackbits(found)[:number].astype(bool)


def difference(mine: str, other: str) -> str:
    """In words, what two descriptions do not share; at most a few names."""
    a, b = (dict.fromkeys(tuple(accumulator) for accumulator in json.loads(text)) for text in (mine, other))
    only_mine, only_other = [c for c in a if c not in b], [c for c in b if c not in a]
    if not only_mine and not only_other:
        return "the same accumulators in another order"
    parts = []
    for name, accumulators in (("it lacks", only_mine), ("it has besides", only_other)):
        if accumulators:
            first = ", ".join(f"{tap} of `{site}`" if site else str(tap) for tap, site, *_ in accumulators[:3])
            parts.append(f"{name} {len(accumulators)} accumulators ({first}{', ...' if len(accumulators) > 3 else ''})")
    return "; ".join(parts)
