"""Excursions: spans over which a curve is above its level, and whether it recovers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stabwatch.analysis.detectors.robust import (
    SUSTAINED,
    WINDOW,
    Array,
    level,
    local_scatter,
    past_median,
    print_unit,
    rolling_median,
    scatter,
    spans,
)

SIGMAS = 8.0
"""Threshold in scatters of the curve's medians of five. About 3 of 1,000 records exceed 3; 8 allows for tails."""
RISE = 0.15
"""Smallest rise relative to the level. Below it, changes of data or batch size are as likely."""
SHORT_SIGMAS = 20.0
SHORT_RISE = 0.3
"""The two thresholds of excursions that last only three or four records."""
WANDER = 2.0
"""For a random walk: distance from the past median relative to the change between medians of five."""
BASE = 8
"""Fewest past records. For an excerpt from the middle of a run, two that agree are enough."""
EXPLOSION = 3.0
"""Rise in levels, and ratio to the record before, from which the last one or two records need no third."""
FLAT = 32
"""Records from the start of training after which a loss that has not fallen has a level too."""
STEEP = 11
"""Past records for the comparison on a steep descent."""
SHAPE = 0.7
"""Share of the peak at either end of a short excursion. A real excursion rises and falls; unusual batches are flat."""
FIRST = 64
"""Records at the beginning that may have no calm block yet."""
ONSET = 1.4
"""Ratio to the lowest record before from which one that is below the next belongs to the rise."""
LONG = 104
"""Fewest records whose changes, relative to the level, show a usual size: three blocks, and one that may be cut."""
UNITS = 5.0
"""Units of the last printed digit that a single record rises by at least."""
FEWEST = 4
"""Fewest differences for a scatter."""
ROUGH = 1.5
"""Change of a median of five, in scatters of differences, of a rough curve. White noise: 0.5; random walk: 2."""
TAILS = 2
"""Number of single records a third as high, elsewhere in the curve, from which single records are usual."""
BACK = 3
"""Records whose median must be back at the level."""
EXCERPT = 16
"""Most records of an excerpt from the middle of a run: a jump needs no recovery there, and its noise is not known."""
ABOVE_STEPS = 4.0
"""Scatters of the changes between records that such an excursion rises by, if later records are as low as before."""
CLEARLY = 2.5
"""Ratio of its peak to all records before, from which it is no noise whatever the others do."""
AROUND, PLACES = 256, 3
"""Records on either side of an excursion, and places in each where the curve is as high, from which that is usual."""
COMMON = 20
"""Number of other spans at least half as high from which an excursion counts as noise."""


@dataclass(frozen=True)
class Excursion:
    """Points start..stop (one past the last) above `base`. recovered: the curve returned to its level.

    height: of the peak above the base, in levels. over: the same in thresholds. scale: size of a change of the curve.
    """

    start: int
    stop: int
    peak: int
    base: float
    scale: float
    over: float
    recovered: bool


@dataclass(frozen=True)
class Reference:
    """By point: the level before it, the size of a change, and the threshold of a median of five above the level."""

    base: Array
    scale: Array
    sigma: Array


def excursions(values: Array, reference: Reference, fresh: bool, dies: bool = False) -> list[Excursion]:
    """All excursions in order. values: (n,), finite. fresh: the curve starts with training. dies: it ends in NaN."""
    found: list[Excursion] = []
    if len(values) < 4:
        return found
    base, scale, sigma = reference.base, reference.scale, reference.sigma
    rise = values - base
    done = BASE if fresh else 2
    for i in np.flatnonzero(rise > np.fmax(SIGMAS * np.nan_to_num(sigma), RISE * scale)).tolist():
        if i < done or not _known(values, i, float(scale[i]), fresh):
            continue
        excursion = _follow(values, rise, i, float(base[i]), scale, float(np.nan_to_num(sigma[i])), dies)
        if excursion is not None:
            found.append(excursion)
            done = excursion.stop
    if len(values) <= EXCERPT and not (fresh or dies):
        found = [e for e in found if not is_noise(values, e)]
    return [e for e in found if not (e.recovered and (_common(rise / scale, e, found) or _is_usual(values, e)))]


def _is_usual(values: Array, e: Excursion) -> bool:
    """Whether single records are as high at several places before and after a short one: a curve with long tails."""
    around = (values[max(e.start - AROUND, 0) : e.start], values[e.stop : e.stop + AROUND])
    return e.stop - e.start <= SUSTAINED and all(len(spans(x >= values[e.peak])) >= PLACES for x in around)


def is_noise(values: Array, e: Excursion) -> bool:
    """Whether an excerpt goes up and down as far as it does here: records after the peak are as low as one before."""
    before, after = values[: e.start], values[e.peak :]
    if not len(before) or after.min() > before.max() or values[e.peak] >= CLEARLY * before.max() > 0:
        return False
    return float(values[e.peak]) - e.base < ABOVE_STEPS * scatter(np.diff(values))


def _common(rise: Array, e: Excursion, found: list[Excursion]) -> bool:
    """Whether the excursion is noise: the curve gets half as far from its level in many places."""
    high = rise > (rise[e.peak] if np.isfinite(rise[e.peak]) else np.inf) / 2
    for other in found:
        high[other.start : other.stop + WINDOW // 2] = False
    return len(spans(high)) >= COMMON


def outliers(values: Array, reference: Reference, taken: list[Excursion]) -> list[int]:
    """Points far above the level that are in no excursion."""
    if len(values) < 2 * BASE:
        return []
    rise = values - reference.base
    high = rise > np.fmax(SHORT_RISE * reference.scale, UNITS * print_unit(values))
    if high.any():
        usual = local_scatter(rise)
        if values.min() > 0:  # where a curve falls to a tenth, its noise does too
            usual = np.fmax(usual, local_scatter(rise / reference.scale) * reference.scale)
        high &= rise > SIGMAS * np.nan_to_num(usual)
    high[: 2 * BASE] = False
    for excursion in taken:
        high[excursion.start : excursion.stop] = False
    return [int(i) for i in np.flatnonzero(high)]


def reference(values: Array) -> Reference:
    """The level and threshold at each point of a curve."""
    base = np.fmin(past_median(values), past_median(values, STEEP))  # on a descent, the longer past is too high
    unit = print_unit(values)
    middles = rolling_median(values, SUSTAINED)
    changes = np.full(len(values), np.nan)
    # Changes between medians of five; unlike a distance from the past, they do not depend on the slope.
    changes[2 * SUSTAINED - 1 :] = middles[SUSTAINED:] - middles[:-SUSTAINED]
    sigma = WANDER * local_scatter(changes)
    if len(values) >= LONG and values.min() > 0:  # where a curve falls to a tenth, its changes do too
        changes[2 * SUSTAINED - 1 :] /= middles[:-SUSTAINED]
        sigma = np.fmin(sigma, WANDER * local_scatter(changes) * base)
    known = np.isfinite(sigma[:FIRST])
    sigma[:FIRST][known] = np.fmin(sigma[:FIRST], WANDER * _first_scatter(values[:FIRST]))[known]
    sigma = np.fmax(sigma, unit)
    scale = np.abs(base) if values.min() >= 0 else np.fmax(np.abs(base), level(values))
    return Reference(base, np.fmax(scale, unit), sigma)


def _first_scatter(values: Array) -> Array:
    """Scatter where a block would include the excursion: a generous one, from the differences of the records before."""
    steps, out = np.diff(values), np.full(len(values), np.nan)
    for i in range(FEWEST + 1, len(values)):
        out[i] = ROUGH * scatter(steps[: i - 1])
    return out


def _known(values: Array, i: int, scale: float, fresh: bool) -> bool:
    """Whether there is a level: enough records below the start of training, or records of an excerpt that agree."""
    past = values[max(0, i - WINDOW) : i]
    if fresh:
        first = float(values[0])
        fell = float(np.median(past)) < first - 0.02 * abs(first) or (first <= 0 and len(past) >= 2 * BASE)
        return len(past) >= BASE and (fell or i >= FLAT)
    return len(past) >= BASE or float(np.ptp(past)) < 0.2 * max(scale, 1e-300) or bool(len(past) >= 4)


def _follow(
    values: Array, rise: Array, i: int, base: float, sizes: Array, sigma: float, dies: bool
) -> Excursion | None:
    """The excursion that begins at i, if the whole curve rises and not only a batch or two."""
    over, scale = values[i:] - base, float(sizes[i])
    limit = max(SIGMAS * sigma, RISE * scale)
    below = np.flatnonzero(over <= limit)
    run = int(below[0]) if len(below) else len(over)
    grows = dies or (run > 1 and over[-1] > EXPLOSION * over[-2])
    explodes = run == len(over) and grows and over[-1] > EXPLOSION * scale and bool((np.diff(over) > 0).all())
    ebbed = np.flatnonzero(over <= limit / 3)
    tail = int(ebbed[0]) if len(ebbed) else len(over)
    if not explodes and not _whole(rise, i, over[:run], over[:tail], sizes, sigma):
        return None
    back = rolling_median(over[run:], BACK) <= limit / 2
    recovered = bool(back.any())
    if not recovered and len(over) - run in (1, 2) and over[run:].max() <= limit / 2:
        recovered = True  # the log ends with one or two records that are back
    stop = i + run + int(np.argmax(back)) if back.any() else i + run if recovered else len(values)
    while stop < len(values) and values[stop] > base + limit / 2:
        stop += 1  # a record that is still high, before two that are back
    peak = i + int(np.argmax(values[i:stop]))
    while i > 0 and values[i - 1] > base + limit / 3:
        i -= 1
    return Excursion(i, stop, peak, base, scale, float(values[peak] - base) / limit, recovered)


def from_its_onset(values: Array, e: Excursion) -> Excursion:
    """The same from where the curve began to rise, in the first records, whose median is no level yet."""
    start = e.start
    lowest = float(values[:start].min(initial=np.inf))
    if not e.recovered or start > 2 * BASE or lowest <= 0:
        return e
    while start > 1 and ONSET * lowest < values[start - 1] < values[start]:
        start -= 1
    return e if start == e.start else replace(e, start=start, base=float(values[start - 1]))


def _whole(rise: Array, i: int, over: Array, ebbing: Array, scale: Array, sigma: float) -> bool:
    """Whether enough records in a row are high, given how often single ones are high in the rest of the curve.

    ebbing: these records and the following ones that are falling back.
    """
    height = float(np.median(over))
    rise = rise / scale  # elsewhere, the curve may have another level
    rest = np.concatenate((rise[BASE // 2 : i], rise[i + len(over) + WINDOW :]))
    single = sum(b - a < BACK for a, b in spans(rest > height / scale[i] / 3))
    if single >= TAILS:
        return len(ebbing) >= 2 * SUSTAINED
    tall = height >= max(SHORT_SIGMAS * sigma, SHORT_RISE * float(scale[i]))
    tall &= bool(ebbing[[0, -1]].min() <= SHAPE * ebbing.max())
    return len(ebbing) >= (BACK if tall else SUSTAINED)
