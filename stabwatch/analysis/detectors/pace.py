"""The pace: long spans of slow steps, and pauses."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.templates import format_seconds
from stabwatch.analysis.detectors.confidence import confidence_of
from stabwatch.analysis.detectors.robust import Array, past_median, rolling_median, spans
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

SLOW = 2.0
"""Multiple of the usual duration from which a span is reported."""
SLOW_WARNING = 3.0
"""Multiple of the usual duration for a warning, if the span lasts to the end or costs more than LOST."""
APART = 5.0
"""Fewest seconds between two records from which a pace can be measured: timestamps have whole seconds."""
LONG = 20
"""Fewest records of a slow span."""
LOST = 1800.0
"""Seconds."""
MATTERS = 60.0
"""Seconds. A slowdown that costs less is no warning, even if it lasts to the end."""
STOP = 20.0
"""Multiple of the usual time between two records (at least a minute) from which a gap is a pause."""


def find(segment: RunSegment) -> list[Incident]:
    """Slow spans, and pauses if the log has times."""
    return [*_slow(segment), *_stops(segment)]


def _pace(segment: RunSegment) -> tuple[Column, Array] | None:
    """Seconds per step, or a quantity proportional to it."""
    column = segment.of("step_seconds")
    if column is not None and len(column) > 3 * LONG and (column.values > 0).all():
        return column, column.values
    column = segment.of("throughput")
    if column is not None and len(column) > 3 * LONG and (column.values > 0).all():
        return column, 1 / column.values
    return _by_times(segment)


def _by_times(segment: RunSegment) -> tuple[Column, Array] | None:
    """Seconds per step from the times of the records, if they are far enough apart."""
    known = np.isfinite(segment.times)
    gaps, steps = np.diff(segment.times[known]), segment.steps[known]
    if len(gaps) <= 3 * LONG or np.median(gaps) < APART or (gaps < 0).any():
        return None
    values = np.maximum(gaps, 1e-3) / np.maximum(np.diff(steps), 1)
    return Column("times of the records", "step_seconds", steps[1:], values, segment.lines[known][1:]), values


def _slow(segment: RunSegment) -> list[Incident]:
    pace = _pace(segment)
    if pace is None:
        return []
    column, values = pace
    middle = rolling_median(values, LONG // 2 + 1)
    base = float(np.quantile(values[3:], 0.25))  # the usual pace, even if half of the run is slow
    found = []
    for a, b in spans(middle > SLOW * base):
        if b - a >= LONG // 2 and a > LONG // 2:
            start, stop = a + LONG // 4, min(b + LONG // 2, len(values))
            found.append(_slowdown(segment, column, values, start, stop, base))
    return found


def _slowdown(segment: RunSegment, column: Column, values: Array, start: int, stop: int, base: float) -> Incident:
    times = float(np.median(values[start:stop])) / base
    inside = segment.times[(segment.steps >= column.steps[start]) & (segment.steps <= column.steps[stop - 1])]
    cost = float(inside[-1] - inside[0]) * (1 - 1 / times) if len(inside) > 1 else float("nan")
    lasts = stop >= len(values)
    grave = times >= SLOW_WARNING and (lasts or cost > LOST) and not cost < MATTERS
    lost = f", which cost {format_seconds(cost)}" if np.isfinite(cost) else ""
    why = "" if segment.must_fall else " Where a policy learns, a step may last as long as its episodes."
    return Incident(
        condition="SlowSteps",
        severity="warning" if grave and segment.must_fall else "info",
        first_step=int(column.steps[start]),
        last_step=None if lasts else int(column.steps[stop - 1]),
        records=stop - start,
        ratio=times,
        confidence=confidence_of(times / SLOW, stop - start),
        line=int(column.lines[start]),
        text=(
            f"Steps take {times:.2g} times as long as usual from step {column.steps[start]}, for {stop - start} records"
            f"{' up to the end' if lasts else ''}{lost}.{why}"
        ),
        evidence=(f"By '{column.name}'.",),
    )


def _stops(segment: RunSegment) -> list[Incident]:
    known = np.isfinite(segment.times)
    times, steps, lines = segment.times[known], segment.steps[known], segment.lines[known]
    gaps = np.diff(times)
    if len(gaps) < LONG:
        return []
    apart = np.maximum(np.diff(steps), 1)  # the logging interval may change during a run
    usual = past_median(gaps / apart) * apart
    usual[: LONG // 2] = (np.median(gaps / apart) * apart)[: LONG // 2]
    at = np.flatnonzero((gaps > STOP * usual) & (gaps > 60))
    at = at[at >= 3]
    if not len(at):
        return []
    worst = int(at[np.argmax(gaps[at])])
    more = f" There are {len(at) - 1} more such gaps." if len(at) > 1 else ""
    return [
        Incident(
            condition="TrainingPaused",
            severity="info",
            first_step=int(steps[worst]),
            last_step=int(steps[worst + 1]),
            records=len(at),
            ratio=float(gaps[worst]),
            confidence="likely",
            line=int(lines[worst + 1]),
            text=(
                f"Nothing was written for {format_seconds(float(gaps[worst]))} after step {steps[worst]} "
                f"({format_seconds(max(float(usual[worst]), 1.0))} is usual): an evaluation, a checkpoint or a pause."
                f"{more}"
            ),
        )
    ]
