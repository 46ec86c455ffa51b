"""What evidence says of the learning rate, and of the sizes of the steps that it gives."""

from __future__ import annotations

import math

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


def below_schedule(e: Evidence) -> float:
    """The rate for which schedules were made over the rate of the first step, the least of all groups; 1 without any.

    A schedule of torch keeps the former as the group's `initial_lr`, and sets the rate to its own first one.
    """
    groups = [g for told in e.memory.optimizers for g in told.get("groups", ()) if isinstance(g, dict)]
    leads = [g.get("initial_lr", g["lr"]) / g["lr"] for g in groups if g.get("lr")]
    return min(leads, default=1.0)


def stands_still(e: Evidence) -> bool:
    """Whether the learning rate has been one and the same in all of the run."""
    rates = e.memory.rate_at[1], e.memory.largest_rate, e.memory.context.get("learning_rate", math.nan)
    return max(rates) <= 1.0001 * min(rates)


def small_steps(e: Evidence) -> bool:
    """All updates that were measured have been tiny."""
    peaks = e.memory.update_peaks
    return bool(peaks) and max(p.ratio for p in peaks) < SMALL_UPDATE
