"""Records of a loss that are out of all proportion: numbers that no batch explains, whatever comes after them."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of

TIMES = 1e4
"""Ratio to the usual size of a loss."""
ABOVE_OTHERS = 100.0
"""Ratio to the largest of all other records."""
LEAST = 1e6
"""Smallest such loss: below it, a loss of another unit may be as large."""
FEWEST = 4
"""Fewest records that show what is usual."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, where no other detector sees an excursion of the curve."""
    loss = segment.finite_loss
    if loss is None or len(loss) < FEWEST or not segment.must_fall or segment.excursions:
        return []
    sizes = np.abs(loss.values)
    usual = float(np.sort(sizes)[(len(sizes) - 1) // 2])
    high = sizes >= max(TIMES * usual, LEAST)
    others = float(sizes[~high].max(initial=0.0))
    high &= sizes >= ABOVE_OTHERS * others
    if segment.fresh and high[0]:  # a bad start, up to the first usual record
        high[: int(np.argmin(high))] = False
    at = np.flatnonzero(high)
    if not len(at) or usual == 0 or bool(high[at[0] :].all()):
        return []
    first, last, worst = int(at[0]), int(at[-1]), int(at[np.argmax(sizes[at])])
    what = "One record of it is" if len(at) == 1 else f"{number_of(len(at))} of it are"
    return [
        Incident(
            condition="LossSpike",
            severity="warning",
            first_step=int(loss.steps[first]),
            last_step=None if last == len(loss) - 1 else int(loss.steps[last]),
            records=len(at),
            ratio=float(sizes[worst] / usual),
            confidence="likely",
            line=int(loss.lines[first]),
            text=(
                f"The {segment.loss_name} explodes in single records: {loss.values[worst]:.4g} at step "
                f"{loss.steps[worst]}, where {usual:.4g} is usual. {what} beyond ten thousand times that: a division "
                f"by nearly 0, a number that overflows, or a broken example."
            ),
        )
    ]
