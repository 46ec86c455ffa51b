"""A validation loss far above the training loss from the first record on, which does not fall with it."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.segments import RunSegment, picked
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_perplexity

FEWEST = 3
"""Fewest validations."""
ABOVE = 10.0
"""Ratio of each to the training loss before it. Overfitting begins near the training loss."""
LEARNED = 0.9
"""Share of the first training loss that the last one is below: the sum of a validation falls with it then."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident."""
    loss, told = segment.of("loss"), segment.of("eval_loss")
    if loss is None or told is None or not segment.fresh or not segment.must_fall or is_perplexity(told.name):
        return []
    if is_perplexity(loss.name) or not np.isfinite(loss.values).all():
        return []
    told = picked(told, np.isfinite(told.values))
    beside = _beside(loss, told)
    if len(beside) < FEWEST or len(beside) < len(told) or beside.min() <= 0:
        return []
    falls = beside[-1] < LEARNED * beside[0]
    late = float(np.median(told.values[len(told) // 2 :]))
    if not falls or late < float(told.values[0]) or (told.values < ABOVE * beside).any():
        return []
    text = (
        f"The validation loss ('{told.name}') is at least {float((told.values / beside).min()):.0f} times the training "
        f"loss in each of {number_of(len(told), 'validation')}, and does not fall with it ({told.values[0]:.4g} to "
        f"{told.values[-1]:.4g}, while training goes from {beside[0]:.4g} to {beside[-1]:.4g}). That is more than "
        f"overfitting: does the evaluation prepare its data, or use the normalisation, otherwise than training?"
    )
    text += how_sure(len(told), "possible")
    return [to_the_end(told, 0, text, condition="EvaluationApart", signal=told.name, confidence="possible")]


def _beside(loss: Column, told: Column) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The last training loss at each validation; fewer, if there is none before the first."""
    at = np.searchsorted(loss.steps, told.steps, side="right") - 1
    return np.asarray(loss.values[at[at >= 0]], dtype=np.float64)
