"""A run of another trainer's log as records of a run log."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun, Role
from stabwatch.runlog import Accumulator, Event, Meta, RecordBatch, RecordLayout, host_accumulator
from stabwatch.runlog.source import BATCH_RECORDS, record_slice

HOST: dict[Role, str] = {
    "learning_rate": "learning_rate",
    "loss_scale": "loss_scale",
    "step_seconds": "step_seconds",
    "skipped_steps": "skipped_steps_total",
}
"""Columns that are host numbers of a run log. The loss and the gradient norm have separate accumulators. Any other
column becomes `logged_value` under its name."""


_NOTHING = RecordLayout.build([Accumulator("loss", "", "mean")])


class ForeignLog:
    """A run of another trainer's log as a record source.

    run: the run from the reader. form: format of the log. notes: what the reader recognised, guessed
    and left out.
    """

    damaged_records = torn_bytes = bad_event_lines = 0

    def __init__(self, path: Path, run: LogRun, form: str = "log", notes: tuple[str, ...] = ()) -> None:
        self.unreadable: dict[Path, str] = {}
        self.path, self.run, self.form, self.notes = path, run, form, notes
        self._block = _block(run)
        known = self._block.times[np.isfinite(self._block.times)]
        name = run.name or path.name
        self.meta = Meta(run=name, created=float(known[0]) if len(known) else 0.0, host="", pid=0, pid_started=0.0,
                         config=dict(run.config))  # fmt: skip
        self.layouts = [self._block.layout]
        self.position, self.size = 0, max(self._block.rows.nbytes, 1)

    def stream(self) -> Iterator[RecordBatch]:
        """The records in batches, from memory."""
        self.position = 0
        for start in range(0, len(self._block), BATCH_RECORDS):
            piece = record_slice(self._block, start, start + BATCH_RECORDS)
            self.position += piece.rows.nbytes
            yield piece

    def poll_events(self) -> list[Event]:
        """An empty list: such a log has no events."""
        return []


def _block(run: LogRun) -> RecordBatch:
    if not len(run.steps) and not any(map(len, run.columns)):
        return RecordBatch(_NOTHING, np.empty(0, np.int64), np.empty(0), np.empty((0, _NOTHING.width), np.float32))
    columns = {accumulator: column for column in run.columns if (accumulator := _accumulator(column)) is not None}
    layout = RecordLayout.build(columns)
    records = _keys(run.steps, run.lines, run)
    points = {key: _keys(column.steps, column.lines, run) for key, column in columns.items()}
    keys = np.unique(np.concatenate([records, *points.values()]), axis=0)
    rows = np.full((len(keys), layout.width), np.nan, np.float32)
    with np.errstate(over="ignore"):
        for accumulator, column in columns.items():
            start = layout.start(accumulator)
            aggregates = _aggregates(accumulator, column.values)
            rows[_row_indices(keys, points[accumulator]), start : start + aggregates.shape[1]] = aggregates
    return RecordBatch(layout, keys[:, 1], _times(keys, records, run.times), rows)


def _accumulator(column: Column) -> Accumulator | None:
    if not len(column):
        return None
    if column.role == "loss":
        return Accumulator("loss", "", "mean")
    if column.role == "grad_norm":
        return Accumulator("gradient", "", "clip")
    if column.role in HOST:
        return host_accumulator(HOST[column.role])
    return Accumulator("logged", column.name, "mean")


def _aggregates(accumulator: Accumulator, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fields of an accumulator: count, value, and number of non-finite values."""
    one, bad = np.ones_like(values), (~np.isfinite(values)).astype(np.float64)
    value = values**2 if accumulator.reduction == "clip" else values
    return np.column_stack([one, value, bad] if accumulator.tap != "host" else [one, value])


def _keys(steps: NDArray[np.int64], lines: NDArray[np.int64], run: LogRun) -> NDArray[np.int64]:
    """(segment, step) of each point; a new segment begins where the steps go back, as after a restart."""
    back = np.flatnonzero(np.diff(run.steps) < 0) + 1
    if (lines >= 0).all() and (run.lines >= 0).all():
        segment = np.searchsorted(run.lines[back], lines, side="right")
    else:
        segment = np.cumsum(np.diff(steps, prepend=steps[:1]) < 0)
    return np.column_stack([segment, steps]).astype(np.int64)


def _row_indices(keys: NDArray[np.int64], mine: NDArray[np.int64]) -> NDArray[np.intp]:
    """Row indices of some keys in `keys`; both are (segment, step), and `keys` is sorted."""
    edges = np.searchsorted(keys[:, 0], np.arange(keys[-1, 0] + 2))
    out = np.empty(len(mine), np.intp)
    for segment, (start, stop) in enumerate(pairwise(edges.tolist())):
        here = mine[:, 0] == segment
        out[here] = start + np.searchsorted(keys[start:stop, 1], mine[here, 1])
    return out


def _times(keys: NDArray[np.int64], records: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times of the records, interpolated for points between them; NaN if the log has no times."""
    known = np.isfinite(times)
    if not known.any():
        return np.full(len(keys), np.nan)
    return np.interp(np.arange(len(keys)), _row_indices(keys, records)[known], times[known])
