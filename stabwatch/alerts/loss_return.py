"""Does a loss that has risen come down again? That of a new task does: it jumps, and is learned."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import OnDemand
from stabwatch.alerts.features import WINDOW, DerivedSignal
from stabwatch.alerts.statistics import TINY, Array, exceedances, exceeds, median, middle

TURN, EDGE = 10, 4
"""Of the last ten losses, the first four and the last four show how much of a rise has been won back."""
COURSE = 24
"""Losses of which the first half is compared with the second: do they fall?"""
RETURN = (
    DerivedSignal(
        "loss_won_back_ratio",
        f"Share of its rise above the median of the {WINDOW} before that the loss has won back over its last {TURN} "
        "values.",
        "ratio",
        "run",
    ),
    DerivedSignal(
        "loss_falling_ratio",
        f"Share of pairs in which one of the first {COURSE // 2} of the last {COURSE} losses exceeds one of the second "
        f"{COURSE // 2}.",
        "ratio",
        "run",
    ),
)


def returned(past: Array) -> tuple[float, float]:
    """Do the last losses come down again? The numbers of `RETURN`, NaN where there are too few."""
    if len(past) < COURSE:
        return math.nan, math.nan
    first, last, level = (median(x) for x in (past[-TURN : EDGE - TURN], past[-EDGE:], past[-TURN - WINDOW : -TURN]))
    return (first - last) / max(first - level, TINY), exceeds(past[-COURSE : -COURSE // 2], past[-COURSE // 2 :])


def returned_many(past: Array, n: int) -> dict[str, Array | OnDemand]:
    """`returned` after each of the last n losses."""
    rows = sliding_window_view(past, WINDOW + TURN)[-n:]
    first, last, level = (
        middle(np.sort(x, axis=1)) for x in (rows[:, -TURN : EDGE - TURN], rows[:, -EDGE:], rows[:, :WINDOW])
    )
    halves = rows[:, -COURSE : -COURSE // 2], rows[:, -COURSE // 2 :]
    falling = OnDemand(lambda at, _: exceedances(halves[0][at], halves[1][at]), np.ones((n, 1), dtype=bool))
    won = (first - last) / np.maximum(first - level, TINY)
    return dict(zip((gauge.name for gauge in RETURN), (won, falling), strict=True))
