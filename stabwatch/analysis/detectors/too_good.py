"""A loss too good to be true: nearly nothing, within a few records."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.robust import Array, print_unit
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

FALL = 1000.0
"""Times that a loss falls within five records. A training that overfits gets there in many more."""
WITHIN = 5
MATTERS = 0.1
"""A loss that was worth something before."""
EXACT = 1e-3
"""The same, where the loss is exactly 0 afterwards."""
BELOW_FIRST = 100.0
"""Times below the log's first loss: what had flown off may come back."""
ALWAYS = 8
"""Records of nothing but 0 that are worth a word."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one."""
    loss = segment.finite_loss
    if loss is None or len(loss) < 3 or loss.values.min() < 0 or not segment.must_fall:
        return []
    values = loss.values
    norm = segment.of("grad_norm")
    if norm is not None and not np.isfinite(norm.values).all():
        return []  # a loss of 0.0 with such a norm is a NaN
    if any(c.role == "eval_loss" and len(c) and np.isnan(c.values[-1]) for c in segment.columns):
        return []  # and so it is with such a validation
    if not values.any() and len(values) >= ALWAYS and loss.role == "loss":
        return [_always(loss)]
    fell = np.flatnonzero(values[WITHIN + 1 :] * FALL <= values[1:-WITHIN]) + WITHIN + 1
    for i in [*range(1, min(WITHIN + 1, len(values))), *fell.tolist()]:
        if values[i] * BELOW_FIRST > values[0]:
            continue  # back from where it had gone, and no lower than it began
        before = float(values[max(0, i - WITHIN) : i].min() if i > WITHIN else values[:i].max())
        rest = values[i:]
        if (
            before < _least(values, i)
            or values[i] * FALL > before
            or float(np.median(rest)) * FALL > before
            or len(rest) < 2
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
                    f"stays there: too good to be true. Do the labels leak into the input, or are they all masked?"
                ),
                evidence=(f"Lowest: {rest.min():.2g}.",),
            )
        ]
    return []


def _least(values: Array, i: int) -> float:
    """What the loss was at least before the fall: less where it is exactly 0 from then on, far below its last digit."""
    if len(values) - i < ALWAYS or values[i:].any():
        return MATTERS
    return min(MATTERS, max(FALL * print_unit(values[:i]), EXACT))


def _always(loss: Column) -> Incident:
    return Incident(
        condition="LossTooGood",
        severity="warning",
        first_step=int(loss.steps[0]),
        last_step=None,
        records=len(loss),
        ratio=0.0,
        confidence="likely",
        line=int(loss.lines[0]),
        text=(
            f"The loss is 0 in each of its {len(loss)} records: are all labels masked, is another loss trained than is "
            f"printed, or has the log too few digits?"
        ),
    )
