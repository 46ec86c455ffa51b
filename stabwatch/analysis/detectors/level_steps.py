"""Steps up of a loss of few records: some in a row above all those just before, by more than these scatter.

It is judged in logarithms and with the records just before alone. So a curve that has fallen to a hundredth is compared
with what it is now, and its first descent is no noise. A long step from which the curve falls to below where it was is
a warm restart of a schedule, whose rate such logs often leave out: it is not told.
"""

from __future__ import annotations

import numpy as np

from stabwatch.analysis.detectors.excursions import Excursion
from stabwatch.analysis.detectors.robust import Array, scatter

FEWEST, MOST = 12, 200
"""Fewest and most records of such a curve; longer ones have a measurable scatter."""
BEFORE = (5, 8)
"""Fewest and most records before a step with which it is compared."""
AFTER = 5
"""Records in a row that are above."""
RISE, SCATTERS = 1.4, 3.0
"""Smallest ratio to the highest record before, and the same in scatters of the changes before."""
STEADY = 0.3
"""Largest scatter of the changes before, in logarithms: above it, single records say little."""
BACK = 1.1
"""Ratio to that record at which the curve is back."""
CYCLE, LOWER = 10, 0.95
"""Fewest records of a step that falls back to below this share of the best before it: a new cycle of a schedule."""
LOSES, FLAT, LONG = 1.12, 0.35, 6
"""A smaller step from which all records are above all before: its ratio to those just before, the largest share of it
that these records span, and fewest of them."""
REST = 1.25
"""Ratio of the lowest record of the step to all later ones that are back: noise is as high again."""


def steps_up(values: Array) -> list[Excursion]:
    """All such steps in order. values: (n,), finite."""
    if not FEWEST <= len(values) <= MOST or values.min() <= 0:
        return []
    logs, found = np.log(values), list[Excursion]()
    i = BEFORE[0]
    while i + AFTER <= len(values):
        step = _step(values, logs, i) or _loses_all(values, logs, i)
        if step is None:
            i += 1
            continue
        found.append(step)
        i = step.stop + BEFORE[0]
    return found


def _step(values: Array, logs: Array, i: int) -> Excursion | None:
    past = slice(max(0, i - BEFORE[1]), i)
    low, near = float(values[i : i + AFTER].min()), float(values[i - BEFORE[0] : i].max())
    if low < RISE * near:
        return None
    top = near if _falls(values[past]) else float(values[past].max())
    noise = scatter(np.diff(logs[past]))
    if noise > STEADY or np.log(low / top) < max(np.log(RISE), SCATTERS * noise):
        return None
    back = np.flatnonzero(values[i:] <= BACK * top)
    stop = i + int(back[0]) if len(back) else len(values)
    later = values[stop:]
    if len(later) and later.max() * REST > low and later.max() > RISE * top:
        return None
    if stop - i >= CYCLE and len(later) and later.min() < LOWER * values[:i].min():
        return None
    peak = i + int(np.argmax(values[i:stop]))
    base = float(np.median(values[i - BEFORE[0] : i]))
    return Excursion(i, stop, peak, base, base, float(np.log(low / top) / np.log(RISE)), recovered=bool(len(back)))


def _loses_all(values: Array, logs: Array, i: int) -> Excursion | None:
    """A step after which a curve that had fallen is flat to the end, above all it had been: all is lost."""
    before, after = values[:i], values[i:]
    if i < BEFORE[1] or len(after) < LONG or after.min() < before.max():
        return None
    near = before[-BEFORE[1] :]
    step, noise = float(np.log(after.min() / near.max())), scatter(np.diff(logs[i - BEFORE[1] : i]))
    if step < max(np.log(LOSES), SCATTERS * noise) or float(np.ptp(logs[i:])) > FLAT * step:
        return None
    base = float(np.median(near[-BEFORE[0] :]))
    peak = i + int(np.argmax(after))
    scale = (float(after.min()) - base) / 4  # so that it counts as a divergence
    return Excursion(i, len(values), peak, base, scale, step / float(np.log(LOSES)), recovered=False)


def _falls(past: Array) -> bool:
    """Whether the records just before are lower than those before them: a descent, whose past is too high."""
    half = len(past) // 2
    return float(past[half:].max()) < float(past[:half].min())
