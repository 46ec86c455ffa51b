"""Records of several unsynchronised writers: the step often goes back by a little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun

OFTEN = 0.05
"""Smallest share of records that go back; a resumed run goes back far more rarely."""
FEW = 20
"""Fewest records that go back."""
LITTLE = 5
"""Most record intervals by which one writer is behind another."""

Ints = NDArray[np.int64]


def in_order(run: LogRun) -> tuple[LogRun, int]:
    """The run with the first record of each step, and the number of records left out."""
    if not _jitters(run.steps):
        return run, 0
    ahead = _ahead(run.steps)
    columns = tuple(_first(column) for column in run.columns)
    kept = replace(run, columns=columns, steps=run.steps[ahead], lines=run.lines[ahead], times=run.times[ahead])
    return kept, int((~ahead).sum())


def _jitters(steps: Ints) -> bool:
    change = np.diff(steps)
    back = change[change < 0]
    if len(back) < max(FEW, OFTEN * len(steps)):
        return False
    apart = np.diff(np.unique(steps))
    return len(apart) > 0 and float(np.quantile(-back, 0.95)) <= LITTLE * float(np.median(apart))


def _ahead(steps: Ints) -> NDArray[np.bool_]:
    """Records above all before them, and records that begin far below again, which start another run."""
    out = np.zeros(len(steps), dtype=np.bool_)
    most, apart = None, LITTLE * float(np.median(np.diff(np.unique(steps))))
    for i, step in enumerate(steps.tolist()):
        if most is None or step > most or step < most - 4 * apart:
            most, out[i] = step, True
    return out


def _first(column: Column) -> Column:
    if len(column) < 2 or not _jitters(column.steps):
        return column
    keep = _ahead(column.steps)
    return replace(column, steps=column.steps[keep], values=column.values[keep], lines=column.lines[keep])
