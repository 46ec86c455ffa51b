"""What the whole run says of an alert that, as it shows, was no problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.robust import rolling_median
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import digits_of

FEW_DIGITS = 2
"""Digits of a loss that hide how it moves late in a training."""
PART = 16
"""Records whose median is a level of the loss."""
BEST = 0.9
"""Share of the level after a rise from which a record before it is as high."""
SHARE = 0.25
"""Least share of the records at the best level that are as high."""
APART = 2.0
"""Ratio of two levels between which a loss goes to and fro."""
GAINED = 4.0
"""Ratio of what a reward gains later to what it had lost, from which that was of its beginning."""


def segment_of(incident: Incident, found: Sequence[RunSegment]) -> RunSegment | None:
    """The segment in which an alert fired."""
    for segment in found:
        if len(segment.steps) and segment.steps[0] <= incident.first_step <= segment.steps[-1]:
            return segment
    return None


def _too_coarse(incident: Incident, found: Sequence[RunSegment]) -> str:
    """What to say of a loss from the middle of another trainer's training, printed with too few digits to move."""
    segment = segment_of(incident, found)
    loss = None if segment is None or segment.watched or segment.fresh else segment.finite_loss
    if loss is None or not len(loss):
        return ""
    if digits_of(float(np.median(loss.values))) > FEW_DIGITS:
        return ""
    return f"{incident.text} The log prints {FEW_DIGITS} digits at most, and late in a training it may move by less."


def _was_as_high(incident: Incident, found: Sequence[RunSegment]) -> str:
    """What to say of a rise to where many records of the best level were: the loss has two levels; empty for others."""
    segment = segment_of(incident, found)
    loss = None if segment is None else segment.finite_loss
    if loss is None:
        return ""
    last = loss.steps[-1] if incident.last_step is None else incident.last_step
    start, stop = np.searchsorted(loss.steps, (incident.first_step, last + 1))
    if start < PART or stop <= start:
        return ""
    middles = rolling_median(loss.values[:start], PART)
    best = int(np.argmin(middles))
    risen = float(np.median(loss.values[start:stop]))
    share = float(np.mean(loss.values[best : best + PART] >= BEST * risen))
    if share < SHARE or risen < APART * float(middles[best]):
        return ""
    return f"{incident.text} {share:.0%} of the records at its best were as high too: the loss has two levels."


def _never_above_zero(incident: Incident, found: Sequence[RunSegment]) -> str:
    """What to say of a learning rate that another trainer's log has as 0 throughout; empty for others."""
    segment = segment_of(incident, found)
    rate = None if segment is None or segment.watched else segment.of("learning_rate")
    if rate is None or rate.values.any():
        return ""
    return (
        f"The learning rate is printed as 0 in each of its {len(rate)} records: the log has too few digits, or nothing "
        f"is trained."
    )


def _came_back(incident: Incident, found: Sequence[RunSegment]) -> str:
    """What to say of a rise of the validation loss, if that was later lower than ever before; empty for others."""
    segment = segment_of(incident, found)
    told = None if segment is None else next((c for c in segment.columns if c.name == incident.signal), None)
    if told is None or not len(told):
        return ""
    before = told.steps <= incident.first_step
    earlier, later = told.values[before], told.values[~before]
    if not np.isfinite(earlier).any() or not np.isfinite(later).any():
        return ""
    at = int(np.nanargmin(later))
    if later[at] >= np.nanmin(earlier):
        return ""
    return f"{incident.text} It was {later[at]:.4g} at step {told.steps[~before][at]}, lower than ever before."


def _gained_far_more(incident: Incident, found: Sequence[RunSegment]) -> str:
    """What to say of a fall of the reward that is small beside what it gains after it; empty for others."""
    segment = segment_of(incident, found)
    reward = None if segment is None else next((c for c in segment.columns if c.name == incident.signal), None)
    if reward is None or incident.last_step is None:
        return ""
    start, stop = np.searchsorted(reward.steps, (incident.first_step, incident.last_step + 1))
    before, during, after = reward.values[:start], reward.values[start:stop], reward.values[stop:]
    if not (len(before) and len(during) and len(after) >= PART and np.isfinite(reward.values).all()):
        return ""
    low, later = float(np.median(during)), float(np.median(after[-PART:]))
    if later - low < GAINED * (float(before.max()) - low):
        return ""
    return f"{incident.text} It rose to {later:.4g} after that: a wave before the policy had learned anything."


WITHDRAWN: dict[str, Callable[[Incident, Sequence[RunSegment]], str]] = {
    "LearningRateZero": _never_above_zero,
    "LossConstant": _too_coarse,
    "LossDivergence": _was_as_high,
    "Overfitting": _came_back,
    "RewardCollapse": _gained_far_more,
}
"""By rule: what to say of an incident that is none; empty if the whole run does not show that."""
