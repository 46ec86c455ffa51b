"""A loss too good to be true: near zero within a few records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.robust import Array, print_unit
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

FALL = 1000.0
"""Factor by which a loss falls within five records. Overfitting takes many more."""
WITHIN = 5
STAYS = 0.9
"""Share of the later records that are as low: a loss of single examples is often 0 and high again."""
MATTERS = 0.1
"""Smallest loss before the fall."""
EXPLODED = 100.0
"""Loss from which one that falls to no less than MATTERS had exploded before, or had a bad start."""
EXACT = 1e-3
"""The same, if the loss is exactly 0 afterwards."""
NO_LEVEL = 1e9
"""Loss that is an explosion whatever it falls to, unless that is exactly 0."""
BELOW_FIRST = 100.0
"""Factor below the first loss of the log: a loss may also fall back after a spike."""
ALWAYS = 8
"""Records that are 0 up to the end, from which a smaller loss before matters too."""
ALL = 5
"""Fewest records, all 0, that are reported."""
PARTS = 3
"""The same, if all parts of the loss are 0 too, or if they are the first epochs. If the gradient norm is 0, one is
enough."""
FEWEST = 3
"""Fewest records of a loss that falls."""
TINY = 1e-15
"""A loss that is 0 but for rounding."""
LIKE = 0.1
"""Smallest loss before a single 0 at the end, relative to the usual one: some losses are often nearly 0."""
LEFT_OUT = 20
"""Ratio of the distance to the record before to that of the records before, from which those between are left out."""
BY_HEART = 10
"""Epochs from one record to the next in which a model may learn a small data set by heart."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident."""
    loss = segment.finite_loss
    if loss is None or not len(loss) or not segment.must_fall or segment.run.searched:
        return []
    values = np.where(np.abs(loss.values) < TINY, 0.0, loss.values)
    if values.min() < 0:
        return []
    loss = replace(loss, values=values)
    norm = segment.of("grad_norm")
    if norm is not None and not np.isfinite(norm.values).all():
        return []  # with such a norm, a loss of 0.0 is a NaN
    if any(c.role == "eval_loss" and len(c) and np.isnan(c.values[-1]) for c in segment.columns):
        return []  # and with such a validation loss too
    nothing = norm is not None and len(norm) >= len(loss) and not norm.values.any()
    parts = [c for c in segment.columns if c.role == "component"]
    empty = len(parts) > 1 and not any(c.values.any() for c in parts)
    first = segment.fresh and segment.run.step_unit == "epoch" and not segment.watched
    if not values.any() and (nothing or len(values) >= (PARTS if empty or first else ALL)) and loss.role == "loss":
        return [_always(loss, nothing)]
    if len(values) < FEWEST:
        return _last(loss) if len(values) > 1 else []
    fell = np.flatnonzero(values[WITHIN + 1 :] * FALL <= values[1:-WITHIN]) + WITHIN + 1
    for i in [*range(1, min(WITHIN + 1, len(values))), *fell.tolist()]:
        if values[i] * BELOW_FIRST > values[0]:
            continue  # a recovery, not below where it began
        apart = int(loss.steps[i] - loss.steps[i - 1])
        if segment.run.step_unit == "epoch" and apart >= BY_HEART:
            continue
        if i >= WITHIN and apart >= LEFT_OUT * int(np.median(np.diff(loss.steps[:i]))) > 0:
            continue
        before = float(values[max(0, i - WITHIN) : i].min() if i > WITHIN else values[0])
        rest = values[i:]
        if (
            before < _least(values, i)
            or values[i] * FALL > before
            or float(np.quantile(rest, STAYS)) * FALL > before
            or len(rest) < 2
            or (before >= EXPLODED and float(np.median(rest)) >= MATTERS)
            or (before >= NO_LEVEL and rest.any())
        ):
            continue
        return [
            Incident(
                condition="LossTooGood",
                severity="warning",
                first_step=int(loss.steps[i]),
                last_step=None,
                records=len(rest),
                ratio=float(values[i] / before),
                confidence="likely",
                line=int(loss.lines[i]),
                text=(
                    f"The {segment.loss_name} falls from {before:.4g} to {values[i]:.2g} at step {loss.steps[i]} and "
                    f"{_course(rest)}: too good to be true. Do the labels leak into the input, or are they all masked?"
                    + (" Or does the trainer print 0 for NaN?" if not rest.any() else "")
                ),
                evidence=(f"Lowest: {rest.min():.2g}.",),
            )
        ]
    return _last(loss)


def _course(rest: Array) -> str:
    """What a loss does after it fell."""
    highest = float(rest.max())
    return "stays there" if highest <= 2 * float(rest[0]) else f"is at most {highest:.2g} after that"


def _last(loss: Column) -> list[Incident]:
    """The loss is exactly 0 in the last record of the log, and was never near it."""
    before, usual = loss.values[:-1], float(np.median(loss.values[:-1]))
    if loss.role != "loss" or loss.values[-1] != 0 or before.min() < LIKE * usual or usual < MATTERS:
        return []
    return [
        Incident(
            condition="LossTooGood",
            severity="warning",
            first_step=int(loss.steps[-1]),
            last_step=None,
            records=1,
            ratio=0.0,
            confidence="possible",
            line=int(loss.lines[-1]),
            text=(
                f"The loss is exactly 0 at step {loss.steps[-1]}, in the last record, after {before[-1]:.4g}: a NaN "
                f"that the trainer filters out of the printed loss, or a batch without labels?"
            ),
        )
    ]


def _least(values: Array, i: int) -> float:
    """Smallest loss before the fall. It is lower if the loss is exactly 0 afterwards, far below its last digit."""
    if len(values) - i < ALWAYS or values[i:].any():
        return MATTERS
    return min(MATTERS, max(FALL * print_unit(values[:i]), EXACT))


def _always(loss: Column, nothing: bool) -> Incident:
    return Incident(
        condition="LossTooGood",
        severity="warning",
        first_step=int(loss.steps[0]),
        last_step=None,
        records=len(loss),
        ratio=0.0,
        confidence="likely" if len(loss) > 1 else "possible",
        line=int(loss.lines[0]),
        text=(
            f"The loss is 0 in {'its only record' if len(loss) == 1 else f'each of its {len(loss)} records'}"
            f"{', and so is the gradient norm' if nothing else ''}: "
            f"are all labels masked, is another loss trained than printed, or does the log have too few digits?"
        ),
    )
