"""Warm restarts of a schedule whose rate the log leaves out: the loss jumps at equal distances, and comes back.

A loss that returns to its best within each cycle is healthy, however high it jumps.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.detectors.excursions import Excursion
from stabwatch.analysis.detectors.robust import Array, rolling_median, spans

AROUND = 3
"""Records on either side of a jump whose medians are compared."""
AS_HIGH = 0.4
"""Share of a jump, in logarithms, from which another is one of the same schedule."""
FEWEST = 3
"""Fewest beginnings of cycles; the start of training is one."""
SHORTEST = 4 * AROUND
"""Fewest records of a cycle."""
EQUAL = 0.03
"""Largest difference of two distances, relative to the longer."""
AS_SLOWLY, PARTS, LOWER = 0.4, 5, 0.98
"""Share of the records before a single restart that its cycle lasts at least, its parts that fall one after the other,
and the share of the best before that it comes down to."""
WORSE = 2.0
"""Ratio of a jump to the first loss: no schedule makes a model that much worse than one that was never trained."""
RETURNS = 1.02
"""Ratio of the lowest record of a cycle to the level before it."""


def period(values: Array, e: Excursion, fresh: bool) -> int | None:
    """Records of the shortest cycle of a schedule that an excursion belongs to; None if it belongs to none."""
    if len(values) < FEWEST * SHORTEST or values.min() <= 0:
        return None
    jumps = _jumps(np.log(values), e.start)
    starts = [0, *jumps] if fresh else jumps
    if len(starts) < FEWEST or not any(abs(at - e.start) <= AROUND for at in jumps):
        return None
    lengths = np.diff(starts)
    if lengths.min() < SHORTEST or not _is_regular(lengths) or jumps[0] > _longest(lengths):
        return None
    if len(values) - starts[-1] > _longest(lengths) * 2 or not _comes_back(values, jumps):
        return None
    return int(lengths.min())


def is_second(values: Array, e: Excursion, fresh: bool) -> bool:
    """Whether a curve falls again from an excursion, as slowly as it had fallen before, to below its best."""
    length = e.stop - e.start
    if not (fresh and e.recovered) or e.start < SHORTEST or length < AS_SLOWLY * e.start or e.stop - e.peak < PARTS:
        return False
    middles = [float(np.median(part)) for part in np.array_split(values[e.peak : e.stop], PARTS)]
    falls = all(b < a for a, b in pairwise(middles)) and float(values[e.peak]) <= WORSE * float(values[0])
    return falls and float(values[e.stop :].min(initial=np.inf)) <= LOWER * float(values[: e.start].min())


def _jumps(logs: Array, at: int) -> list[int]:
    """The places where a curve jumps nearly as high as it does at one place, or higher."""
    middles = rolling_median(logs, AROUND)
    rises = middles[AROUND:] - middles[:-AROUND]
    first = max(at - 2 * AROUND, 0)
    near = rises[first : at + 1]
    if not len(near) or near.max() <= 0:
        return []
    return [a + int(np.argmax(rises[a:b])) + AROUND for a, b in spans(rises >= AS_HIGH * float(near.max()))]


def _longest(lengths: NDArray[np.intp]) -> float:
    return float(lengths.max()) * (1 + EQUAL) + AROUND


def _is_regular(lengths: NDArray[np.intp]) -> bool:
    """Whether all cycles are equally long, or each is a multiple of the one before, the same each time."""
    ratios = lengths[1:] / lengths[:-1]
    by = max(round(float(np.median(ratios))), 1)
    return all(abs(b - by * a) <= max(EQUAL * b, 2) for a, b in pairwise(lengths.tolist()))


def _comes_back(values: Array, jumps: list[int]) -> bool:
    """Whether the loss is as low as before within each cycle that is whole."""
    return all(
        float(values[a:b].min()) <= RETURNS * float(np.median(values[max(a - AROUND, 0) : a]))
        for a, b in pairwise(jumps)
    )
