"""What the loss of a calm run did: nothing is wrong that a rule knows, and yet its owner may want to hear of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stabwatch.alerts.statistics import Array, Ints, middle
from stabwatch.analysis.readers.log import LogRun

FEWEST = 160
"""Records of a run from which on it is said."""
PIECES, SHORTEST = 20, 8
"""Pieces of a run whose medians are compared, and fewest records of one."""
LEFT = 0.5
"""Of the first level: what has come below it has learned something."""
GAIN, LOST = 0.05, 0.2
"""Of what was gained: less is no progress, and more is a loss of it."""
LONG = 0.4
"""Of the run."""
NOISE = 5.0
"""Times the usual difference of neighbouring pieces: by that much a level is above another one not by chance."""


def standstill(run: LogRun, last: Mapping[str, float], changed: bool = False) -> str:
    """Sentences on a loss that stands still far above zero, or has lost what it had gained; '' otherwise.

    last: numbers of the run by now; where the cross-entropy is little of the loss, that is said. Nothing where losses
    of different steps do not compare, as in reinforcement learning, or where the data changed.
    """
    column = run.of("loss")
    if column is None or changed or not run.comparable or len(column) < FEWEST:
        return ""
    values, steps = np.asarray(column.values, np.float64), np.asarray(column.steps)
    known = np.isfinite(values)
    said = _of(values[known], steps[known]) if known.sum() >= FEWEST else ""
    loss, tokens = last.get("loss", 0.0), last.get("token_loss", 0.0)
    if said and 0 < tokens < loss / 2:
        said += f" Of the last loss, {loss:.4g}, the cross-entropy is {tokens:.4g}: most of it is another term."
    return said


def _of(values: Array, steps: Ints) -> str:
    size = max(SHORTEST, len(values) // PIECES)
    count = len(values) // size
    levels = middle(np.sort(values[-count * size :].reshape(count, size), axis=1))
    begins = steps[-count * size :: size]
    first, best, now = float(levels[0]), float(levels.min()), float(np.median(levels[-2:]))
    if not 0 < best < first:
        return ""
    gained, noise = first - best, float(np.median(np.abs(np.diff(levels))))
    if now - best > max(LOST * gained, NOISE * noise):
        at = int(begins[int(levels.argmin())])
        return f" The loss was lower before: {best:.4g} about step {at}, {now:.4g} now. Why is not known."
    reached = int(np.argmax(levels <= best + max(GAIN * gained, noise)))
    since = int(begins[reached])
    if now < LEFT * first or steps[-1] - since < LONG * (steps[-1] - steps[0]):
        return ""
    return (
        f" The loss has hardly fallen since step {since}: it is {now:.4g}, {now / first:.0%} of what it was at first. "
        "No rule says why; is that what these data allow?"
    )
