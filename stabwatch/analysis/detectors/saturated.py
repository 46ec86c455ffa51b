"""Outputs that are exactly 0 or 1: each wrong answer costs the most that a clipped logarithm gives, each right one
nothing."""

from __future__ import annotations

import numpy as np

from stabwatch.analysis.detectors.never_learns import GAINED, accuracies
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_eval

FEWEST = 3
"""Fewest records."""
COSTS = (15.3, 16.15)
"""Least and largest cost of a wrong answer whose probability is clipped at 1e-7 in 32 bits: -ln of 2.2e-7 to 1e-7."""
AGREE = 0.01
"""Largest difference of that cost between records, relative to it."""
WRONG = 0.1
"""Least share of wrong answers in any record: with fewer, an overconfident model costs as much."""


def reason(segment: RunSegment, loss: Column) -> str:
    """A sentence on why nothing is learned; empty if that does not show."""
    if loss.role != "loss" or len(loss) < FEWEST:
        return ""
    for column, share in accuracies(segment, loss):
        if is_eval(column.name) or len(share) != len(loss) or 1 - share.max() < WRONG:
            continue
        cost = loss.values / (1 - share)
        middle = float(np.median(cost))
        if not COSTS[0] <= middle <= COSTS[1] or float(np.ptp(cost)) > AGREE * middle or share[-1] > share[0] + GAINED:
            continue
        return (
            f"The {segment.loss_name} is {middle:.4g} times the share of wrong answers (from '{column.name}') in each "
            f"of {number_of(len(loss))}: each wrong answer costs the most that a clipped logarithm gives, and each "
            f"right one nothing. The outputs are exactly 0 or 1, and no gradient comes through them: nothing is "
            f"learned." + how_sure(len(loss), "possible")
        )
    return ""
