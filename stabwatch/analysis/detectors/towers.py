"""A span of records far above all others before and after it: no noise of the curve, however large that is."""

from __future__ import annotations

import numpy as np

from stabwatch.analysis.detectors.excursions import Excursion
from stabwatch.analysis.detectors.robust import Array, spans

LONG = 16
"""Fewest records of such a span, before it and after it."""
HIGH = 10.0
"""Ratio to the median of the curve from which a record belongs to it."""
APART = 3.0
"""Ratio of its median to the highest of all other records."""


def towers(values: Array) -> list[Excursion]:
    """At most one such span. values: (n,), finite."""
    if len(values) < 3 * LONG or values.min() < 0:
        return []
    usual = float(np.median(values))
    high = spans(values > HIGH * usual)
    if usual <= 0 or not high:
        return []
    start, stop = max(high, key=lambda span: span[1] - span[0])
    others = np.concatenate((values[:start], values[stop:]))
    if min(stop - start, start, len(values) - stop) < LONG or np.median(values[start:stop]) < APART * others.max():
        return []
    peak, base = start + int(np.argmax(values[start:stop])), float(np.median(values[:start]))
    if base <= 0:
        return []
    return [Excursion(start, stop, peak, base, base, float(values[peak]) / (HIGH * usual), recovered=True)]
