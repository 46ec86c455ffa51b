"""A short, steady descent that breaks off: the loss jumps above all it had been, and returns later, or not at all.

A log of few records has no noise that could be measured, but a loss that falls from record to record says that there is
little. A jump is compared with the largest rise before it.
"""

from __future__ import annotations

import sys

import numpy as np

from stabwatch.analysis.detectors.excursions import EXCERPT, Excursion
from stabwatch.analysis.detectors.robust import Array

FEWEST, MOST = 5, 64
"""Fewest and most records of such a curve."""
BEFORE = 4
"""Fewest records of a descent."""
SETTLED = 5
"""Fewest before a jump that returns: the first records of a training have a hump of their own."""
FELL = 0.15
"""Smallest descent, relative to the first loss."""
QUIET = 8.0
"""Ratio of a jump to the largest rise before it."""
JUMP = 1.3
"""Ratio of the first record of a jump to the one before."""
ABOVE = 1.5
"""The same for its highest one, where it returns."""
KEEPS = 1.2
"""The same for each later record, where it does not."""
BACK, STILL = 0.2, 0.25
"""Share of a jump that is left where it has returned, and in each later record."""
LEFT = 0.4
"""The same relative to the level before, for large jumps."""
LOST, LOST_CLIMBING = 0.8, 0.5
"""Share of the loss before the descent that the last records have again, where nothing is left of it; the same where
each record is above the one before."""
ENDS = 0.8
"""Share of the highest record that the last one has: it does not return."""
LAST = 3
"""Fewest records of such an end; two, if both rise, to above all before."""
OFTEN = 3
"""Ratio of the records before a jump to those of a jump that returns."""


def breaks(values: Array) -> list[Excursion]:
    """At most one such jump. values: (n,), finite."""
    if not FEWEST <= len(values) <= MOST or not np.ptp(values) > 0:
        return []
    for i in range(BEFORE - 1, len(values) - 1):
        past, base = values[:i], float(values[i - 1])
        unit = base if values.min() > 0 else float(past.max()) - base
        if (
            unit < sys.float_info.min
            or not _is_steady(past)
            or values[i] - base < max((JUMP - 1) * unit, _largest_rise(past))
        ):
            continue
        height = float(values[i:].max()) - base
        back = np.flatnonzero(values[i + 1 :] <= base + min(BACK * height, LEFT * unit, (values[i] - base) / 2))
        stop = i + 1 + int(back[0]) if len(back) else None
        found = _stays(values, i, base, unit) if stop is None else _returns(values, i, stop, base, unit)
        if found is not None:
            return [found]
    return []


def _is_steady(past: Array) -> bool:
    """Whether a loss has fallen, and is at its lowest."""
    top = float(past.max())
    return top - float(past[-1]) >= FELL * abs(top) and float(past[-3:].min()) <= float(past.min())


def _largest_rise(past: Array) -> float:
    return QUIET * max(float(np.diff(past).max()), 0.0)


def _returns(values: Array, i: int, stop: int, base: float, unit: float) -> Excursion | None:
    """A jump of two records and more that comes back for good."""
    peak, later = i + int(np.argmax(values[i:stop])), values[stop:]
    height = float(values[peak]) - base
    if i < SETTLED or not 2 <= stop - i <= max(i // OFTEN, 2) or len(later) < 2:
        return None
    if 3 * np.count_nonzero(np.diff(values[:i]) > 0) > i - 1:  # it wavers: the jump may be two odd batches
        return None
    if (
        values[peak] < values[:i].max()
        or height < (ABOVE - 1) * unit
        or later.max() > base + min(STILL * height, LEFT * unit)
    ):
        return None
    return Excursion(i, stop, peak, base, unit, height / ((JUMP - 1) * unit), recovered=True)


def _stays(values: Array, i: int, base: float, unit: float) -> Excursion | None:
    """A jump to where nothing is left of the descent, up to the end."""
    tail, top = values[i:], float(values[:i].max())
    climbs = bool((np.diff(values[i - 1 :]) > 0).all())
    rises = climbs and float(tail[-1]) > top
    few = i < BEFORE or len(tail) < LAST
    if few and not (rises and len(values) <= EXCERPT and _is_convex(values[:i])):
        return None
    lost = 0.0 if rises else LOST_CLIMBING if climbs and len(tail) > LAST else LOST
    if float(tail.min()) - base < (KEEPS - 1) * unit or float(tail[-2:].min()) < base + lost * (top - base):
        return None
    if tail[-1] - base < ENDS * float(tail.max() - base):
        return None
    peak = i + int(np.argmax(tail))
    height = float(tail.max()) - base
    scale = (float(tail.min()) - base) / 4  # so that even an excerpt of two such records has diverged
    return Excursion(i, len(values), peak, base, scale, height / ((JUMP - 1) * unit), recovered=False)


def _is_convex(past: Array) -> bool:
    """Whether a descent becomes slower from record to record, as a curve without noise does."""
    return bool((np.diff(past) < 0).all() and (np.diff(past, 2) > 0).all())
