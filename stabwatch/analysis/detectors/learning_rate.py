"""The learning rate: a jump, or zero while the run continues."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.robust import spans
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

JUMP = 2.0
"""Ratio from one record to the next, after the warm-up."""
SAME = 1.05
"""Largest ratio to the highest earlier rate at which a jump is the restart of a cyclic schedule."""
ZERO = 20
"""Fewest records at a rate of 0."""
SHARE = 0.05
"""Fewest records as a share: a schedule may end slightly before the run."""


def find(segment: RunSegment) -> list[Incident]:
    """Upward jumps, and a schedule that has ended."""
    rate = segment.of("learning_rate")
    if rate is None or len(rate) < 8:
        return []
    return [*_jumps(segment, rate), *_zero(rate)]


def warm_restart(segment: RunSegment, first: int, last: int) -> int | None:
    """The step of a jump between two steps that a schedule makes: back to an earlier rate.

    A single one may be a mistake; the caller checks the effect on the loss.
    """
    rate = segment.of("learning_rate")
    if rate is None or len(rate) < 8:
        return None
    at = _jumped(segment, rate)
    at = at[rate.values[at] <= SAME * np.maximum.accumulate(rate.values)[at - 1]]
    found = rate.steps[at][(rate.steps[at] >= first) & (rate.steps[at] <= last)]
    return int(found[0]) if len(found) else None


def _jumped(segment: RunSegment, rate: Column) -> NDArray[np.int64]:
    """Records whose rate is far above that of the record before."""
    values = rate.values
    past = np.maximum.accumulate(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        up = values[1:] / values[:-1]
    # A warm-up has a new maximum in every record; a jump follows a constant or a falling rate.
    settled = np.concatenate(([False], values[1:-1] <= past[:-2]))
    at = np.flatnonzero((up > JUMP) & settled & (values[:-1] > 0)) + 1
    return at[at > ZERO // 2] if segment.fresh else at


def _jumps(segment: RunSegment, rate: Column) -> list[Incident]:
    at, values = _jumped(segment, rate), rate.values
    if not len(at):
        return []
    up = values[at] / values[at - 1]
    i = int(at[np.argmax(up)])
    more = f" There are {len(at) - 1} more such jumps." if len(at) > 1 else ""
    return [
        Incident(
            condition="LearningRateSpike",
            severity="info",
            first_step=int(rate.steps[at[0]]),
            last_step=int(rate.steps[at[-1]]),
            records=len(at),
            ratio=float(up.max()),
            confidence="likely",
            line=int(rate.lines[at[0]]),
            text=f"The learning rate jumps at step {rate.steps[i]}, from {values[i - 1]:.3g} to {values[i]:.3g}.{more}",
        )
    ]


def _zero(rate: Column) -> list[Incident]:
    if not rate.values.any():
        return []  # too few digits printed, or no learning: the loss shows which
    last = spans(rate.values == 0)
    if not last or last[-1][1] < len(rate) or last[-1][1] - last[-1][0] < max(ZERO, SHARE * len(rate)):
        return []
    i, points = last[-1][0], len(rate) - last[-1][0]
    return [
        Incident(
            condition="LearningRateZero",
            severity="info",
            first_step=int(rate.steps[i]),
            last_step=None,
            records=points,
            ratio=0.0,
            confidence="likely",
            line=int(rate.lines[i]),
            text=(
                f"The learning rate is 0 from step {rate.steps[i]}, for the last {points} records: the schedule has "
                f"ended, or the log has too few digits."
            ),
            evidence=(f"Before: {rate.values[i - 1]:.3g}.",) if i else (),
        )
    ]
