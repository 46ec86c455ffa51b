"""The definition (Qualcomm's oscillation tracking and OFQ's boundary range), in float64, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence


def history(
    visits: Sequence[Sequence[float]], low: int, high: int
) -> tuple[list[tuple[float, float]], list[tuple[int, int, int]]]:
    """The numbers of `quantised` at each visit, those of flips from the second on.

    visits: w / scale + zero point of each weight at each visit.
    """
    levels, flips = [], []
    size = len(visits[0])
    last, direction, average = [0] * size, [0] * size, [0.0] * size
    for visit in visits:
        now = [min(max(round(x), low), high) for x in visit]  # half to even
        between = [x for x in visit if low <= math.floor(x) < high]
        near = sum(abs(x - math.floor(x) - 0.5) < 0.005 for x in between)
        levels.append((float(len(between)), near / 0.01))
        if len(levels) > 1:
            change = [(a > b) - (a < b) for a, b in zip(now, last, strict=True)]
            average = [0.01 * (c * d == -1) + 0.99 * f for c, d, f in zip(change, direction, average, strict=True)]
            direction = [c or d for c, d in zip(change, direction, strict=True)]
            flips.append((size, sum(c != 0 for c in change), sum(f > 0.02 for f in average)))
        last = now
    return levels, flips
