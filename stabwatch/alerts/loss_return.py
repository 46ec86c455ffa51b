"""Does a loss that has risen come down again? That of a new task does: it jumps, and is learned."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import OnDemand
from stabwatch.alerts.features import WINDOW, DerivedSignal
from stabwatch.alerts.statistics import TINY, Array, median, middle

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
        f"Share of what separates the loss from its best value that it has won back between the first and the second "
        f"half of its last {COURSE} values, by their medians.",
        "ratio",
        "run",
    ),
)


def returned(past: Array, best: float) -> tuple[float, float]:
    """Do the last losses come down again? The numbers of `RETURN`, NaN where there are too few."""
    if len(past) < COURSE:
        return math.nan, math.nan
    first, last, level = (median(x) for x in (past[-TURN : EDGE - TURN], past[-EDGE:], past[-TURN - WINDOW : -TURN]))
    then, now = median(past[-COURSE : -COURSE // 2]), median(past[-COURSE // 2 :])
    return (first - last) / max(first - level, TINY), (then - now) / max(then - best, TINY)


def returned_many(past: Array, best: Array) -> dict[str, Array | OnDemand]:
    """`returned` after each of the last losses, of which `best`, (n,), is the best value so far."""
    rows = sliding_window_view(past, WINDOW + TURN)[-len(best) :]
    halves = rows[:, -COURSE : -COURSE // 2], rows[:, -COURSE // 2 :]
    first, last, level, then, now = (
        middle(np.sort(x, axis=1)) for x in (rows[:, -TURN : EDGE - TURN], rows[:, -EDGE:], rows[:, :WINDOW], *halves)
    )
    won, falls = (first - last) / np.maximum(first - level, TINY), (then - now) / np.maximum(then - best, TINY)
    return dict(zip((gauge.name for gauge in RETURN), (won, falls), strict=True))
