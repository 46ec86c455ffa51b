"""From a step's row (of this rank, or merged over ranks) to a record of the run log. Runs in the writer's thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.health import RankHealth
from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.probes.run import LOSS, LOSS_FALLBACKS, loss_source
from stabwatch.runlog import Accumulator, RecordLayout, host_accumulator
from stabwatch.signals import CATALOGUE

_HOST_GAUGES = (
    "step_seconds", "data_wait_seconds", "samples_per_second", "learning_rate", "overhead_ratio", "taps_missing",
)  # fmt: skip
_HOST_COUNTS = ("skipped_steps_total", "probe_errors_total", "records_dropped_total")


@dataclass
class HostNumbers:
    """Numbers of a step that the host knows by itself. Counters are running totals here, increments in the log."""

    step_seconds: float = math.nan
    data_wait: float = math.nan
    samples: int = 0
    learning_rate: float = math.nan
    overhead: float = math.nan
    taps_missing: float = math.nan
    skipped: int = 0
    errors: int = 0
    dropped: int = 0
    _told: tuple[int, int, int] = (0, 0, 0)

    def forward_begins(self, inputs: tuple[Any, ...], began: float) -> None:
        """A training forward starts, in a step that began at `began` on the clock of `time.perf_counter`."""
        if math.isnan(self.data_wait):
            self.data_wait = time.perf_counter() - began
        sizes = [x.shape[0] for x in inputs if hasattr(x, "shape") and len(x.shape)]
        self.samples += sizes[0] if sizes else 0

    def next_step(self) -> None:
        """What is counted within a step begins anew."""
        self.data_wait, self.samples = math.nan, 0

    def take(self) -> NDArray[np.float64]:
        """The slots of the host cells, (count, value) each; counters as the increment since the last call."""
        totals = (self.skipped, self.errors, self.dropped)
        increments = [new - old for new, old in zip(totals, self._told, strict=True)]
        self._told = totals
        pace = self.samples / self.step_seconds if self.samples else math.nan
        gauges = (self.step_seconds, self.data_wait, pace, self.learning_rate, self.overhead, self.taps_missing)
        pairs = [(0.0 if math.isnan(v) else 1.0, v) for v in gauges] + [(1.0, float(v)) for v in increments]
        return np.array(pairs).reshape(-1)


NO_HOST_NUMBERS = np.full(2 * (len(_HOST_GAUGES) + len(_HOST_COUNTS)), np.nan)
"""Of a step that this rank did not measure."""


@dataclass(frozen=True)
class RankExtra:
    """What rank 0 adds to a record by itself. time: seconds since the epoch. host: slots of the host accumulators."""

    time: float
    host: NDArray[np.float64]
    logged: Mapping[str, HostTransfer]


ROUND_ROBIN = {(s.tap, s.reduction) for s in CATALOGUE if s.tier == "deep" and s.tap != "attention"}
"""Their sites are measured one after the other: the first of them brings all of its tap into the log."""
PER_CALL = {s.reduction for s in CATALOGUE if s.tier == "deep" and s.tap == "attention"}
"""Of attention: those come where an exact maximum was seen."""
HOST_ACCUMULATORS = tuple(host_accumulator(name) for name in (*_HOST_GAUGES, *_HOST_COUNTS))


class Assembler:
    """Settles the source of the loss, and keeps to the cells that exist in this run.

    The device holds a cell for every place where something might be seen; the log lists those that are
    expected, and any other from the first record in which it was measured (a new segment begins then).
    """

    def __init__(
        self,
        cells: Iterable[Accumulator],
        expected: Iterable[Accumulator],
        health: RankHealth,
        undecided: Callable[[], None] = lambda: None,
        attention_limit: float = math.inf,
    ) -> None:
        self._device = RecordLayout.build(cells)
        self._undecided = undecided
        self._limit = attention_limit
        self._sources = [self._device.start(loss_source(name)) for name in LOSS_FALLBACKS]
        self._health = health
        kept = (c for c in self._device.cells if c.tap not in ("loss_source", "rank_source"))
        self._fixed = (LOSS, *kept, *HOST_ACCUMULATORS, *health.cells)
        self._logged: list[str] = []
        self.fired: set[Accumulator] = set()
        self._shown = set(expected) | set(HOST_ACCUMULATORS) | {LOSS}
        self._lay_out()

    def _lay_out(self) -> None:
        self._all = RecordLayout.build((*self._fixed, *(Accumulator("logged", name, "mean") for name in self._logged)))
        self._starts = np.array(self._all.starts, dtype=np.int64)
        self._brackets = _brackets(self._all)
        self._select()

    def _select(self) -> None:
        keep = [i for i, cell in enumerate(self._all.cells) if cell in self._shown]
        self.table = RecordLayout.build(self._all.cells[i] for i in keep)
        spans = [np.arange(len(self._all.fields[i])) + self._all.starts[i] for i in keep]
        self._slots = np.concatenate(spans)

    def assemble(
        self,
        row: NDArray[np.floating],
        health: NDArray[np.float64] | None,
        host: NDArray[np.float64],
        logged: Mapping[str, NDArray[np.floating]],
    ) -> tuple[RecordLayout, NDArray[np.float32]]:
        """row: (device slots,). health: slots of the accumulators that compare ranks, None for one rank alone.

        Gives the table and the slots of the record, NaN where not measured.
        """
        new = [name for name in logged if name not in self._logged]
        if new:
            self._logged += new
            self._lay_out()
        merged = self._device.operators.with_nan(row)
        compared = self._health.absent if health is None else health
        after = self._sources[-1] + 3
        given = [logged.get(name, np.full(3, np.nan)) for name in self._logged]
        full = np.concatenate([self._loss(merged), merged[after:], host, compared, *given])
        full = self._all.operators.with_nan(full)
        fired = {cell for cell, here in zip(self._all.cells, ~np.isnan(full[self._starts]), strict=True) if here}
        self.fired |= fired
        if not fired <= self._shown:
            self._shown |= fired
            taps = {c.tap for c in fired if (c.tap, c.reduction) in ROUND_ROBIN}
            self._shown |= {c for c in self._all.cells if c.tap in taps and (c.tap, c.reduction) in ROUND_ROBIN}
            attending = {c.site for c in self.fired if c.reduction == "attention_exact"}
            self._shown |= {c for c in self._all.cells if c.reduction in PER_CALL and c.site in attending}
            self._select()
        self._look_at_brackets(full)
        return self.table, full[self._slots].astype(np.float32)

    def _loss(self, merged: NDArray[np.float64]) -> NDArray[np.float64]:
        for start in self._sources:
            if merged[start] > 0:
                return merged[start : start + 3]
        return np.full(3, np.nan)

    def _look_at_brackets(self, full: NDArray[np.float64]) -> None:
        """Ask for the exact value when the limit lies inside a bracket."""
        upper, lower = self._brackets
        with np.errstate(invalid="ignore"):
            if np.any((full[lower] < self._limit) & (full[upper] >= self._limit)):
                self._undecided()


def _brackets(table: RecordLayout) -> NDArray[np.int64]:
    """Slots of the upper and of the lower ends of all attention brackets: (2, brackets)."""
    pairs = []
    for cell, start, fields in zip(table.cells, table.starts, table.fields, strict=True):
        if cell.reduction == "attention_bracket":
            names = [name for name, _ in fields]
            pairs.append((start + names.index("upper"), start + names.index("lower")))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
