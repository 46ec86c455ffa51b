"""Short rises of the training loss that the validation loss shows too: the model was worse then, not a batch."""

from __future__ import annotations

import numpy as np

from stabwatch.analysis.detectors.excursions import Excursion, from_its_onset
from stabwatch.analysis.detectors.robust import Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

JUMP = 1.5
"""Ratio of both losses to their records just before."""
FAR = 30.0
"""The same for two evaluations, where the training loss does not show it."""
BACK = 1.2
"""Ratio to the same at which they are back."""
BEFORE = 3
"""Records before a rise whose median is its level."""
LONGEST = 8
"""Most records of such a rise. Longer ones are excursions of the curve itself."""


def evaluated_twice(segment: RunSegment, loss: Column) -> tuple[Column, float] | None:
    """The loss of an evaluation on the training data, and the ratio from which a rise of both evaluations is told.

    Where the training loss goes on, and does not rise with them, only such a ratio as no data explain is.
    """
    evaluated = segment.of("eval_loss")
    if evaluated is None or len(evaluated) < 2 * BEFORE:
        return None
    ends = loss.steps[-1] < evaluated.steps[len(evaluated) // 2]
    for column in segment.columns:
        if column.role == "component" and np.array_equal(column.steps, evaluated.steps):
            return (column, JUMP if ends else FAR) if np.isfinite(column.values).all() else None
    return None


def rises(segment: RunSegment, loss: Column, jump: float = JUMP) -> list[Excursion]:
    """All such rises by a ratio that came back, in order."""
    evaluated = segment.of("eval_loss")
    values = loss.values
    if evaluated is None or loss.role not in ("loss", "component") or len(values) <= BEFORE or values.min() <= 0:
        return []
    if not np.isfinite(evaluated.values).all() or evaluated.values.min() <= 0:
        return []
    found: list[Excursion] = []
    i = BEFORE
    while i < len(values) - 1:
        base = _level(values, i)
        back = np.flatnonzero(values[i : i + LONGEST + 1] <= BACK * base)
        stop = i + (int(back[0]) if len(back) and values[i] >= jump * base else 0)
        if stop == i or not _is_seen(evaluated, loss.steps[i:stop].tolist(), jump):
            i += 1
            continue
        peak = i + int(np.argmax(values[i:stop]))
        over = float(values[peak] - base) / ((jump - 1) * base)
        rise = Excursion(i, stop, peak, base, base, over, recovered=True)
        found.append(from_its_onset(values, rise) if segment.fresh else rise)
        i = stop + 1
    return found


def _level(values: Array, i: int) -> float:
    return float(np.median(values[i - BEFORE : i]))


def _is_seen(evaluated: Column, steps: list[int], jump: float) -> bool:
    """Whether the validation loss jumps at one of these steps, and is back later."""
    for step in steps:
        at = int(np.searchsorted(evaluated.steps, step))
        if BEFORE <= at < len(evaluated) and evaluated.steps[at] == step:
            base = _level(evaluated.values, at)
            later = evaluated.values[at : at + LONGEST + 1]
            if evaluated.values[at] >= jump * base and later.min() <= BACK * base:
                return True
    return False
