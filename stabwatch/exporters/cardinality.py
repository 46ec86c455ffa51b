"""Granularity of the export: per layer, or per block or run together with the worst layers.

Layers are merged into blocks by the merge operators of their accumulators, record by record: the RMS of a block is
that of all its elements, not a mean of RMS values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stabwatch.exporters.declared import declared
from stabwatch.exporters.latest import Latest, SeriesCap
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout, SeriesKey
from stabwatch.runlog.schema import Series
from stabwatch.signals.reductions import UFUNCS

Cardinality = Literal["run", "block", "layer"]
CARDINALITIES: tuple[Cardinality, ...] = ("run", "block", "layer")
WORST = 5
UNLAYERED_TAPS = ("host", "logged")
"""Taps whose sites are names, not layers."""
_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")


def group_of(layer: str, cardinality: Cardinality) -> str:
    """The name under which a layer is exported: 'blocks.3' for 'blocks.3.attn.proj', '' for the run."""
    if cardinality == "layer":
        return layer
    if cardinality == "run":
        return ""
    found = _BLOCK.match(layer)
    return found[1] if found else layer.partition(".")[0]


class Coarsening:
    """Merges the accumulators of one layout by group. `table`: the merged layout."""

    def __init__(self, layout: RecordLayout, group: Callable[[Accumulator], Accumulator]) -> None:
        self._fine = layout
        accumulators = [group(accumulator) for accumulator in layout.accumulators]
        fields = dict(zip(accumulators, layout.fields, strict=True))
        starts = dict(zip(fields, np.cumsum([0, *map(len, fields.values())])[:-1].tolist(), strict=True))
        to = np.concatenate([starts[c] + np.arange(len(f)) for c, f in zip(accumulators, layout.fields, strict=True)])
        series: dict[SeriesKey, Series] = {}
        for s in layout.series:
            place = group(_accumulator_of(layout, s.indices[0])).site if s.key.layer else ""
            key = SeriesKey(s.key.signal, place)
            indices = tuple(dict.fromkeys(to[list(s.indices)].tolist()))
            series.setdefault(key, Series(key, s.formula, indices))
        self.layout = RecordLayout(tuple(fields), tuple(fields.values()), tuple(series.values()))
        ops = np.array([op for f in layout.fields for _, op in f])
        self._runs = {op: _runs(np.flatnonzero(ops == op), to) for op in ("sum", "max", "min", "arg")}
        self._to = to

    def __call__(self, block: RecordBatch) -> RecordBatch:
        """The same records, merged."""
        rows = self._fine.operators.with_identity(block.rows)
        out = np.empty((len(rows), self.layout.width))
        with np.errstate(invalid="ignore"):
            for op, function in UFUNCS.items():
                indices, starts, places = self._runs[op]
                if len(indices):
                    out[:, places] = function.reduceat(rows[:, indices], starts, axis=1)
        indices, starts, places = self._runs["arg"]
        if len(indices):
            winners = rows[:, indices - 1] == out[:, self._to[indices] - 1]
            out[:, places] = np.minimum.reduceat(np.where(winners, rows[:, indices], np.inf), starts, axis=1)
        return RecordBatch(
            self.layout, block.steps, block.times, self.layout.operators.with_nan(out).astype(np.float32)
        )


def _runs(
    indices: NDArray[np.int64], to: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Columns sorted by target, the start of each group, and its target."""
    ordered = indices[np.argsort(to[indices], kind="stable")]
    places, starts = np.unique(to[ordered], return_index=True)
    return ordered, starts, places


def _accumulator_of(layout: RecordLayout, index: int) -> Accumulator:
    return layout.accumulators[int(np.searchsorted(np.array(layout.starts), index, side="right")) - 1]


@dataclass(frozen=True)
class Shown:
    """Series to export; arrays are aligned with `keys`."""

    keys: tuple[SeriesKey, ...]
    last: NDArray[np.float64]
    window: NDArray[np.float64]
    totals: NDArray[np.float64]
    nonfinite: NDArray[np.int64]


class Coarse:
    """The state of a run by groups, and the worst layers of each signal."""

    def __init__(self, cardinality: Cardinality, cap: SeriesCap, worst: int = WORST) -> None:
        self.cap = cap
        self._cardinality = cardinality
        self._worst = worst
        self._latest = Latest(cap)
        self._made: dict[int, Coarsening] = {}

    def observe(self, block: RecordBatch, arrived: float) -> None:
        """See Latest."""
        made = self._made.get(id(block.layout))
        if made is None:
            made = self._made[id(block.layout)] = Coarsening(block.layout, self._group)
        self._latest.observe(made(block), arrived)

    def _group(self, accumulator: Accumulator) -> Accumulator:
        if accumulator.tap in UNLAYERED_TAPS or not accumulator.site:
            return accumulator
        return Accumulator(accumulator.tap, group_of(accumulator.site, self._cardinality), accumulator.reduction)

    def shown(self, fine: Latest, now: float) -> Shown:
        """The groups, and the layers of `fine` with the worst values of the last minute."""
        coarse, window = self._latest, fine.window(now)
        mine = [i for i in self._worst_of(fine, window) if self.cap.admit(("worst", i), 2)]
        at = np.array(mine, dtype=np.int64)
        return Shown(
            (*coarse.keys, *(fine.keys[i] for i in mine)),
            np.concatenate([coarse.last, fine.last[at]]),
            np.concatenate([coarse.window(now), window[at]]),
            np.concatenate([coarse.totals, fine.totals[at]]),
            np.concatenate([coarse.nonfinite, fine.nonfinite[at]]),
        )

    def _worst_of(self, fine: Latest, window: NDArray[np.float64]) -> list[int]:
        there = set(self._latest.keys)
        members: dict[str, list[int]] = {}
        for i, key in enumerate(fine.keys):
            if key.layer and key not in there:
                members.setdefault(key.signal, []).append(i)
        found: list[int] = []
        for signal, columns in members.items():
            d = declared(signal)
            if d.worst is None and not d.counter:
                continue  # an index has no size
            values = (fine.totals if d.counter else window)[columns]
            sized = np.where(np.isfinite(values), values, -np.inf if d.worst != "min" else np.inf)
            order = np.argsort(sized if d.worst == "min" else -sized, kind="stable")[: self._worst]
            found += [columns[i] for i in order if np.isfinite(sized[i]) and (not d.counter or sized[i] > 0)]
        return found

    def derived(self, values: Mapping[SeriesKey, float], low: Iterable[str]) -> dict[SeriesKey, float]:
        """Derived signals by group, each by its worst layer, and the worst layers. low: signals where low is bad."""
        smallest = set(low)
        ordered = sorted(values.items(), key=lambda kv: kv[1] if kv[0].signal in smallest else -kv[1])
        found: dict[SeriesKey, float] = {}
        kept: dict[str, int] = {}
        for key, value in ordered:
            found.setdefault(SeriesKey(key.signal, group_of(key.layer, self._cardinality)), value)
            kept[key.signal] = kept.get(key.signal, 0) + bool(key.layer)
            if key.layer and kept[key.signal] <= self._worst:
                found.setdefault(key, value)
        return found

    def group(self, layer: str) -> str:
        """The name under which a layer is exported."""
        return group_of(layer, self._cardinality)

    def first(self, layers: Iterable[str]) -> list[str]:
        """The layers of an alert that are shown individually, in the order of firing."""
        return list(dict.fromkeys(layers))[: self._worst]

    def places(self, layers: list[str]) -> list[str]:
        """Where alerts of some layers are shown: the first of them individually, and all by group."""
        return list(dict.fromkeys([*self.first(layers), *(self.group(n) for n in layers)]))
