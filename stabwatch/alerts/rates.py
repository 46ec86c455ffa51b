"""What evidence says of the learning rate, and of the sizes of the steps that it gives."""

from __future__ import annotations

from stabwatch.alerts.evidence import Evidence

SMALL_UPDATE = 3e-4
"""Largest update of a run, in the median layer, below which no rate was too high, though it is the highest so far."""


def at_its_highest(e: Evidence) -> bool:
    """Whether it is the largest of the run so far."""
    rate, largest = (e.context.get(name) for name in ("learning_rate", "learning_rate_largest"))
    return rate is not None and largest is not None and rate >= 0.99 * largest


def climbs(e: Evidence) -> bool:
    """Whether the learning rate rises to a new maximum, which is then the likelier cause."""
    rate, earlier = (e.context.get(name) for name in ("learning_rate", "learning_rate_earlier"))
    return rate is not None and earlier is not None and rate > 1.01 * earlier and at_its_highest(e)


def small_steps(e: Evidence) -> bool:
    """All updates that were measured have been tiny."""
    peaks = e.memory.update_peaks
    return bool(peaks) and max(p.ratio for p in peaks) < SMALL_UPDATE
