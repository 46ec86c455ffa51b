"""What evidence says of the learning rate, and of the sizes of the steps that it gives."""

from __future__ import annotations

import math

from stabwatch.alerts.evidence import Evidence

SMALL_UPDATE = 3e-4
"""Largest update of a run, in the median layer, below which no rate was too high, though it is the highest so far."""


BEHIND = 10.0
"""The rate that a schedule was made for over the one that it begins with: a warm-up, and hardly a decay."""


def at_its_highest(e: Evidence) -> bool:
    """Whether it is the largest of the run so far."""
    rate, largest = (e.context.get(name) for name in ("learning_rate", "learning_rate_largest"))
    return rate is not None and largest is not None and rate >= 0.99 * largest


def climbs(e: Evidence) -> bool:
    """Whether the learning rate rises to a new maximum, which is then the likelier cause."""
    rate, earlier = (e.context.get(name) for name in ("learning_rate", "learning_rate_earlier"))
    return rate is not None and earlier is not None and rate > 1.01 * earlier and at_its_highest(e)


def behind_schedule(e: Evidence) -> float | None:
    """The largest rate for which schedules were made, if each group began at a tenth of its own and less; else None.

    A schedule of torch keeps it as the group's `initial_lr`, and sets the rate to its own first one.
    """
    groups = [g for told in e.memory.optimizers for g in told.get("groups", ()) if isinstance(g, dict)]
    made = [(g.get("lr", math.inf), g.get("initial_lr", 0.0)) for g in groups]
    return max(base for _, base in made) if made and all(BEHIND * rate <= base for rate, base in made) else None


def stands_still(e: Evidence) -> bool:
    """Whether the learning rate has been one and the same in all of the run, or zero."""
    now, first = e.memory.context.get("learning_rate", math.nan), e.memory.rate_at[1]
    known = (now, e.memory.largest_rate, now if math.isnan(first) else first)
    return max(known) <= 1.0001 * min(known)


def small_steps(e: Evidence) -> bool:
    """All updates that were measured have been tiny."""
    peaks = e.memory.update_peaks
    return bool(peaks) and max(p.ratio for p in peaks) < SMALL_UPDATE
