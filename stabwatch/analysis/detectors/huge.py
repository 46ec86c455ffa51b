"""Records of a loss that are out of all proportion: numbers that no batch explains, whatever comes after them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column

_UNNAMED = re.compile(r"column \d+")
TIMES = 1e4
"""Ratio to the usual size of a loss."""
ABOVE_OTHERS = 100.0
"""Ratio to the largest of all other records."""
LEAST, RECORDS = 1e6, 20
"""Smallest such loss of a few records: below it, a loss of another unit may be as large; and fewest records that show
the unit, of which the smallest such loss is `SMALL` times `TIMES`."""
SMALL = 0.1
FEWEST = 4
"""Fewest records that show what is usual."""


BEYOND, STEEP, MANY = 1e7, 1e5, 8
"""Least loss and least gradient norm of a training that had diverged before its log begins, and fewest records."""
UNHEARD_OF = 1e20
"""The same loss, whatever is printed beside it."""
FALLS = 0.5
"""Share of the first level below which such a loss falls."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, where no other detector sees an excursion of the curve."""
    loss = segment.finite_loss
    if loss is None and segment.loss is None:
        return _nameless(segment)
    if loss is None or len(loss) < 2 or not segment.must_fall or segment.excursions:
        return []
    if (gone := _gone_before(segment, loss)) is not None:
        return [gone]
    if len(loss) < FEWEST:
        return []
    sizes = np.abs(loss.values)
    usual = float(np.sort(sizes)[(len(sizes) - 1) // 2])
    least = TIMES * SMALL if len(sizes) >= RECORDS else LEAST
    high = sizes >= max(TIMES * usual, least)
    others = float(sizes[~high].max(initial=0.0))
    high &= sizes >= ABOVE_OTHERS * others
    if segment.fresh and high[0]:  # a bad start, up to the first usual record
        high[: int(np.argmin(high))] = False
    at = np.flatnonzero(high)
    lasts = len(at) > 0 and bool(high[at[0] :].all())
    if not len(at) or usual == 0 or (lasts and loss.values[at].min() >= 0):
        return []
    first, last, worst = int(at[0]), int(at[-1]), int(at[np.argmax(sizes[at])])
    what = "One record of it is" if len(at) == 1 else f"{number_of(len(at))} of it are"
    where = "and stays there to the end" if lasts else "in single records"
    return [
        Incident(
            condition="LossDivergence" if lasts else "LossSpike",
            severity="warning",
            first_step=int(loss.steps[first]),
            last_step=None if last == len(loss) - 1 else int(loss.steps[last]),
            records=len(at),
            ratio=float(sizes[worst] / usual),
            confidence="likely",
            line=int(loss.lines[first]),
            text=(
                f"The {segment.loss_name} explodes {where}: {loss.values[worst]:.4g} at step "
                f"{loss.steps[worst]}, where {usual:.4g} is usual. {what} beyond ten thousand times that: a division "
                f"by nearly 0, a number that overflows, or a broken example."
            ),
        )
    ]


def _nameless(segment: RunSegment) -> list[Incident]:
    """A number of rows without names that is a hundred times all others of its column, in a log without a loss."""
    for column in segment.columns:
        values = column.values
        if not _UNNAMED.fullmatch(column.name) or len(values) < MANY or not np.isfinite(values).all():
            continue
        worst = int(np.argmax(values))
        if worst < FEWEST or values.min() < 0 or not 0 < ABOVE_OTHERS * np.delete(values, worst).max() <= values[worst]:
            continue
        text = (
            f"'{column.name}', whose numbers have no name, is {values[worst]:.4g} at step {column.steps[worst]}, more "
            f"than a hundred times all others of that column ({np.median(values):.4g} in the middle). If it is a loss, "
            f"it explodes there." + how_sure(len(values), "possible")
        )
        found = to_the_end(column, worst, text, condition="LossSpike", signal=column.name)
        last = None if worst == len(values) - 1 else int(column.steps[worst])
        return [replace(found, confidence="possible", last_step=last, records=1)]
    return []


def _gone_before(segment: RunSegment, loss: Column) -> Incident | None:
    """A loss and a gradient norm that are huge in all records of an excerpt from the middle, and do not fall."""
    norm, least = segment.of("grad_norm"), float(loss.values.min())
    steep = norm is not None and len(norm) >= MANY and bool(np.isfinite(norm.values).all())
    steep = steep and norm is not None and len(loss) >= MANY and norm.values.min() >= STEEP
    if segment.fresh or least < (BEYOND if steep else UNHEARD_OF):
        return None
    half = len(loss) // 2
    if float(np.median(loss.values[half:])) < FALLS * float(np.median(loss.values[:half])):
        return None
    beside = f", and the gradient norm at least {norm.values.min():.4g}" if steep and norm is not None else ""
    text = (
        f"The {segment.loss_name} is at least {least:.4g} in each of {number_of(len(loss))}{beside}: it had diverged "
        f"before the log begins, or its targets are not scaled." + how_sure(len(loss), "possible")
    )
    return replace(to_the_end(loss, 0, text, condition="LossDivergence", signal=loss.name), confidence="possible")
