"""Spans over which a curve rises above its level, and whether it comes back."""

from __future__ import annotations

from dataclasses import dataclass

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
"""Scatters of the curve's own medians of five. Of 1,000 records some 3 lie beyond three; eight leave room for tails."""
RISE = 0.15
"""Of the level. Below it changes of the data or of the batch size are as likely."""
SHORT_SIGMAS = 20.0
SHORT_RISE = 0.3
"""What takes the place of the two when an excursion lasts three or four records only."""
WANDER = 2.0
"""How much farther a curve gets from its past median than from one five to the next, if it is a random walk."""
BASE = 8
"""Records of the past at least. An excerpt from the middle of a run may have two, if they agree."""
EXPLOSION = 3.0
"""Levels over the level, and times the record before, by which the last record or two need no third."""
STEEP = 11
"""Records of the past that a steep descent is compared with."""
SHAPE = 0.7
"""Of the peak, at either end of a short excursion: what rises and falls is the curve, what is flat are odd batches."""
FIRST = 64
"""Records at the beginning for which there may be no block of calm ones."""
FEWEST = 4
"""Differences that a scatter is taken from."""
ROUGH = 1.5
"""Scatters of differences that a median of five may move by; it is 0.5 for white noise, 2 for a random walk."""
TAILS = 2
"""Single records a third as high, elsewhere in the curve, that make single records nothing unusual."""
BACK = 3
"""Records whose median must be back at the level."""
COMMON = 20
"""Other spans, at least half as high, that make an excursion the noise of a curve."""


@dataclass(frozen=True)
class Excursion:
    """Points start..stop (one past the last) above `base`. recovered: the curve came back.

    height: of the peak over the base, in levels; over: the same in thresholds. scale: of a change of the curve.
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
    """Per point: the level before it, the size of a change, and how far a median of five may lie from the level."""

    base: Array
    scale: Array
    sigma: Array


def excursions(values: Array, reference: Reference, fresh: bool, dies: bool = False) -> list[Excursion]:
    """All of them, in order. values: (n,), finite. fresh: the curve starts with the training; dies: it ends in NaN."""
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
    return [e for e in found if not (e.recovered and _common(rise / scale, e, found))]


def _common(rise: Array, e: Excursion, found: list[Excursion]) -> bool:
    """Whether the curve is restless: it gets half as far from its level everywhere."""
    high = rise > (rise[e.peak] if np.isfinite(rise[e.peak]) else np.inf) / 2
    for other in found:
        high[other.start : other.stop + WINDOW // 2] = False
    return len(spans(high)) >= COMMON


def outliers(values: Array, reference: Reference, taken: list[Excursion]) -> list[int]:
    """Points far above the level that belong to no excursion."""
    if len(values) < 2 * BASE:
        return []
    rise = values - reference.base
    high = rise > SHORT_RISE * reference.scale
    if high.any():
        high &= rise > SIGMAS * np.nan_to_num(local_scatter(rise))
    high[: 2 * BASE] = False
    for excursion in taken:
        high[excursion.start : excursion.stop] = False
    return [int(i) for i in np.flatnonzero(high)]


def reference(values: Array) -> Reference:
    """Of a curve."""
    base = np.fmin(past_median(values), past_median(values, STEEP))  # on a descent the longer past is too high
    unit = print_unit(values)
    middles = rolling_median(values, SUSTAINED)
    changes = np.full(len(values), np.nan)
    # From one five to the next: a slope does not enter, as a distance from the past would.
    changes[2 * SUSTAINED - 1 :] = middles[SUSTAINED:] - middles[:-SUSTAINED]
    sigma = WANDER * local_scatter(changes)
    known = np.isfinite(sigma[:FIRST])
    sigma[:FIRST][known] = np.fmin(sigma[:FIRST], WANDER * _first_scatter(values[:FIRST]))[known]
    sigma = np.fmax(sigma, unit)
    scale = np.abs(base) if values.min() >= 0 else np.fmax(np.abs(base), level(values))
    return Reference(base, np.fmax(scale, unit), sigma)


def _first_scatter(values: Array) -> Array:
    """Where a block would hold the excursion itself: from the differences of the records before, and generous."""
    steps, out = np.diff(values), np.full(len(values), np.nan)
    for i in range(FEWEST + 1, len(values)):
        out[i] = ROUGH * scatter(steps[: i - 1])
    return out


def _known(values: Array, i: int, scale: float, fresh: bool) -> bool:
    """Whether there is a level to leave: enough records, below where a training began, or an excerpt's that agree."""
    past = values[max(0, i - WINDOW) : i]
    if fresh:
        return (
            len(past) >= BASE and float(np.median(past)) < 0.98 * float(values[0]) if values[0] > 0 else len(past) >= 16
        )
    return len(past) >= BASE or float(np.ptp(past)) < 0.2 * max(scale, 1e-300) or bool(len(past) >= 4)


def _follow(
    values: Array, rise: Array, i: int, base: float, sizes: Array, sigma: float, dies: bool
) -> Excursion | None:
    """The excursion that begins at i, if it is one of the whole curve and not of a batch or two."""
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
        recovered = True  # the log ends with one or two records, and they are back
    stop = i + run + int(np.argmax(back)) if back.any() else i + run if recovered else len(values)
    peak = i + int(np.argmax(values[i:stop]))
    while i > 0 and values[i - 1] > base + limit / 3:
        i -= 1
    return Excursion(i, stop, peak, base, scale, float(values[peak] - base) / limit, recovered)


def _whole(rise: Array, i: int, over: Array, ebbing: Array, scale: Array, sigma: float) -> bool:
    """Whether enough records in a row are high, for how often single ones are in the rest of this curve.

    ebbing: those and the ones after them that are on the way back.
    """
    height = float(np.median(over))
    rise = rise / scale  # the curve may have been on another level elsewhere
    rest = np.concatenate((rise[BASE // 2 : i], rise[i + len(over) + WINDOW :]))
    single = sum(b - a < BACK for a, b in spans(rest > height / scale[i] / 3))
    if single >= TAILS:
        return len(ebbing) >= 2 * SUSTAINED
    tall = height >= max(SHORT_SIGMAS * sigma, SHORT_RISE * float(scale[i]))
    tall &= bool(ebbing[[0, -1]].min() <= SHAPE * ebbing.max())
    return len(ebbing) >= (BACK if tall else SUSTAINED)
