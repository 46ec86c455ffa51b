"""Detectors of training problems, in hindsight.

A detector is a module with `find(segment) -> list[Incident]`. It prints nothing, keeps no state, and returns nothing
if its columns are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.analysis.detectors import (
    adversarial,
    cut_off,
    divergence,
    evaluation,
    gradients,
    huge,
    learning,
    learning_rate,
    loss_scale,
    means,
    messages,
    nonfinite,
    pace,
    policy,
    policy_divergence,
    reinitialisation,
    restarts,
    scores,
    side_losses,
    spikes,
    too_good,
    unmoved,
)
from stabwatch.analysis.detectors.segments import RunSegment, cut, segments
from stabwatch.analysis.readers.log import LogRun, Role

Detector = Callable[[RunSegment], list[Incident]]

DETECTORS: tuple[Detector, ...] = (
    nonfinite.find,
    divergence.find,
    spikes.find,
    huge.find,
    means.find,
    cut_off.find,
    evaluation.find,
    gradients.find,
    loss_scale.find,
    learning.find,
    unmoved.find,
    too_good.find,
    learning_rate.find,
    pace.find,
    policy.find,
    adversarial.find,
    side_losses.find,
    policy_divergence.find,
    scores.find,
    messages.find,
)
"""The detectors that read one segment. `reinitialisation` cuts a segment in two; `restarts` reads all segments."""

_ROLES: dict[str, Role] = {
    "GradientNormExplosion": "grad_norm",
    "GradientNormOutliers": "grad_norm",
    "LossScaleCollapse": "loss_scale",
    "LossScaleSearch": "loss_scale",
    "LearningRateSpike": "learning_rate",
    "LearningRateZero": "learning_rate",
    "SlowSteps": "step_seconds",
}
"""Role of the column that a condition concerns, if it is not the loss."""
_OF_LOSS = ("LossSpike", "LossDivergence", "LossOutliers")
"""Conditions that a detector of policies may find in a column of its own; then the same is no information besides."""
_NO_COLUMN = ("TrainingPaused", "RunRestarted", "RunResumed", "TrainingStopped", "LoggedError", "NonFinite")


def detect(run: LogRun, watched: bool = False) -> list[Incident]:
    """All incidents of a run, in the order of the log.

    watched: the curves are those of a run folder; then incidents have no line.
    """
    return detect_in(list(segments(run, watched)))


def detect_in(found: Sequence[RunSegment]) -> list[Incident]:
    """All incidents of the segments of one run, in the order of the log."""
    with np.errstate(all="ignore"):  # a log may contain any number
        incidents = [*restarts.find(found), *(i for segment in found for i in _of_segment(segment))]
    incidents.sort(key=lambda i: (_line(i) if _line(i) >= 0 else i.first_step, i.first_step, _severity(i)))
    names = _names(found)
    return [_placed(i, names, found[0].watched) for i in incidents]


def _line(incident: Incident) -> int:
    return -1 if incident.line is None else incident.line


def _severity(incident: Incident) -> int:
    return SEVERITIES.index(incident.severity)


def _of_segment(segment: RunSegment) -> Iterator[Incident]:
    """All incidents of a segment. Each re-initialisation cuts it in two."""
    begun = reinitialisation.find(segment)
    yield from begun
    for incident in begun:
        early, segment = cut(segment, incident.first_step)
        yield from _detected(early)
    yield from _detected(segment)


def _detected(segment: RunSegment) -> list[Incident]:
    """Incidents of the detectors, without single outliers that belong to a divergence."""
    found = [incident for find in DETECTORS for incident in find(segment)]
    gone = min((i.first_step for i in found if i.condition == "LossDivergence"), default=None)
    own = [i.first_step for i in found if i.signal and i.condition in _OF_LOSS and i.is_problem]
    found = [i for i in found if i.signal or i.is_problem or i.condition not in _OF_LOSS or i.first_step not in own]
    told = [i.first_step for i in found if i.is_problem and i.condition in _OF_LOSS and not i.signal]
    found = [i for i in found if i.condition != "LossOutliers" or i.first_step not in told]
    return [i for i in found if i.condition != "LossOutliers" or gone is None or (i.last_step or 0) < gone]


def _names(found: Iterable[RunSegment]) -> dict[Role, str]:
    """Name of the column of each role."""
    names: dict[Role, str] = {}
    for segment in found:
        for column in segment.columns:
            if len(column):
                names.setdefault(column.role, column.name)
    if "eval_loss" in names:
        names.setdefault("loss", names["eval_loss"])
    if "throughput" in names:
        names.setdefault("step_seconds", names["throughput"])
    return names


def _placed(incident: Incident, names: dict[Role, str], watched: bool) -> Incident:
    """The incident with the name of its column, and the line or the record where it begins."""
    known = incident.signal or incident.condition in _NO_COLUMN
    signal = incident.signal if known else names.get(_ROLES.get(incident.condition, "loss"), "")
    line = _line(incident)
    if line < 0:
        return replace(incident, signal=signal, line=None)
    return replace(incident, signal=signal, line=None if watched else line, record=line - 1 if watched else None)
