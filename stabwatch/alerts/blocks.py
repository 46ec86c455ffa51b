"""Blocks of records: the numbers of a feature over many records at once, equal to those record by record.

A feature declares what it can do besides `update` in its own class: a subclass may change `update`, so it declares
again. What is not declared is done record by record.

measures(values): whether each record of values (n, series) can change anything. Other records are left out.
observe_block(steps, values): the numbers of n such records as a `Block`, and the state after them; None while windows
    fill, which is done record by record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabwatch.alerts.rule import Condition
from stabwatch.alerts.statistics import Array, Bools, Ints, last_places

LEAST_RECORDS = 16
"""Records from which a block costs less than its records one by one."""


@dataclass(frozen=True)
class OnDemand:
    """A gauge that is computed where it is needed. at: from (records, layers) to values.

    measured: (n, layers), False where it is certainly NaN.
    """

    at: Callable[[Ints, Ints], Array]
    measured: Bools


class BlockGauges:
    """Numbers by name over n records, each (n, layers), NaN where not measured."""

    def __init__(self, columns: Mapping[str, Array | OnDemand]) -> None:
        self._columns = columns
        self.shape: tuple[int, ...] = self.of("points").shape

    def of(self, name: str) -> Array:
        """One gauge everywhere."""
        column = self._columns[name]
        if not isinstance(column, OnDemand):
            return column
        out = np.full(self.shape, np.nan)
        places = np.nonzero(column.measured)
        out[places] = column.at(*places)
        return out

    def at(self, record: int, layer: int) -> dict[str, float]:
        """All numbers of one layer in one record."""
        place = np.array([record]), np.array([layer])
        columns = {name: (c.at(*place) if isinstance(c, OnDemand) else c[place]) for name, c in self._columns.items()}
        return {name: float(found[0]) for name, found in columns.items()}

    def holds(self, conditions: Sequence[Condition], layer: int | None = None) -> Bools:
        """Where all conditions hold: (n, layers), or (n, 1) for one layer.

        A gauge on demand is computed where the other ones hold.
        """
        some = slice(None) if layer is None else slice(layer, layer + 1)
        met: Bools | None = None
        for condition in sorted(conditions, key=lambda c: isinstance(self._columns[c.gauge], OnDemand)):
            column = self._columns[condition.gauge]
            if not isinstance(column, OnDemand):
                now = condition.holds(column[:, some])
                met = now if met is None else met & now
                continue
            met = column.measured[:, some] & (True if met is None else met)
            records, layers = np.nonzero(met)
            met[records, layers] = condition.holds(column.at(records, layers + (layer or 0)))
        assert met is not None, "a rule has at least one condition"
        return met

    def last(self, name: str) -> Array:
        """The last value of each layer that is a number, (layers,)."""
        column = self._columns[name]
        layers = np.arange(self.shape[1])
        if not isinstance(column, OnDemand):
            return column[last_places(~np.isnan(column)), layers]
        records = last_places(column.measured)
        found = column.at(records, layers)
        found[~column.measured[records, layers]] = np.nan
        for layer in np.flatnonzero(np.isnan(found)):
            earlier = np.flatnonzero(column.measured[:, layer])
            values = column.at(earlier, np.full(len(earlier), layer))
            found[layer] = next((x for x in reversed(values.tolist()) if x == x), np.nan)
        return found


Block = tuple[Ints, BlockGauges]
"""The records in which something was measured, ascending, and the numbers of those."""


class Records:
    """Records that many features read: steps (n,) and values (n, series)."""

    def __init__(self, steps: Ints, values: Array) -> None:
        self.steps, self.values = steps, values
        self._some: dict[bytes, Array] = {}

    def some(self, rows: Ints) -> Array:
        """The values of some records. Features that are measured together share them."""
        if len(rows) == len(self.values):
            return self.values
        key = rows.tobytes()
        if key not in self._some:
            self._some[key] = self.values[rows]
        return self._some[key]


def evaluate(feature: Any, records: Records) -> Iterator[Block]:
    """The numbers of a feature over records, in one or more blocks."""
    steps, values = records.steps, records.values
    rows = np.arange(len(steps))
    measures, observe_block = (_declared(feature, name) for name in ("measures", "observe_block"))
    if measures is not None:
        rows = np.flatnonzero(measures(values))
    start = 0
    while start < len(rows):
        mine = rows[start:]
        block: Block | None = None
        if observe_block is not None:
            block = observe_block(steps[mine], records.some(mine))
        if block is None:
            mine = mine[:LEAST_RECORDS] if observe_block is not None else mine
            block = one_by_one(feature, steps[mine], values[mine])
        start += len(mine)
        if block is not None and len(block[0]):
            yield mine[block[0]], block[1]


def one_by_one(feature: Any, steps: Ints, values: Array) -> Block | None:
    """The numbers of a feature over records, by its `update`; None where nothing was measured.

    A feature with the run as its only row has `numbers`: the same without an array for each.
    """
    of_run = getattr(feature, "numbers", None)
    update = feature.update if of_run is None else of_run
    numbers = [update(step, values[i]) for i, step in enumerate(steps.tolist())]
    found = [n for n in numbers if n is not None]
    if not found:
        return None
    rows = np.array([i for i, n in enumerate(numbers) if n is not None])
    columns = {name: np.array([n[name] for n in found]) for name in found[0]}
    return rows, BlockGauges(columns if of_run is None else {name: c[:, None] for name, c in columns.items()})


def _declared(feature: Any, name: str) -> Callable[..., Any] | None:
    return getattr(feature, name) if name in vars(type(feature)) else None
