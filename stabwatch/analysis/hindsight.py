"""Merges the incidents of rules and detectors, and judges alerts in hindsight.

In a live run it is not known whether a curve will recover. A rule must decide at each record; a detector reads what
came after. If both find the same thing, they make one incident. If the whole run shows that an alert was no problem,
the alert becomes information, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.data_change import CLIMBS
from stabwatch.alerts.evidence import TOGETHER
from stabwatch.alerts.incidents import Incident, gravest, rank
from stabwatch.analysis.detectors import detect_in
from stabwatch.analysis.detectors.robust import SUSTAINED, Array, past_median, spans
from stabwatch.analysis.detectors.segments import RunSegment, segments
from stabwatch.analysis.readers.log import LogRun
from stabwatch.analysis.withdrawn import WITHDRAWN, segment_of

SAME: dict[str, tuple[str, ...]] = {
    "LossSpike": ("LossSpike", "LossShift", "LossDivergence", "Reinitialisation"),
    "LossShift": ("LossSpike", "LossShift", "LossDivergence", "Reinitialisation"),
    "LossLostAtRateJump": ("LossSpike", "LossShift", "LossDivergence", "Reinitialisation"),
    "LossDivergence": ("LossDivergence", "Reinitialisation", "LossShift", "LossPlateau", "LossSpike"),
    "GradientNormExplosion": ("GradientNormExplosion",),
    "NonFinite": ("NonFinite",),
    "LossScaleCollapse": ("LossScaleCollapse",),
    "TrainingStopped": ("TrainingPaused", "TrainingStopped"),
}
"""By rule: names under which a detector may report the same thing, because it knows the outcome."""
_LOSS = ("LossSpike", "LossShift", "LossDivergence", "LossLostAtRateJump")
_WITH_DATA = ("LossSpike", "LossShift", "LossDivergence", "LossPlateau", "Reinitialisation", "GradientNormExplosion")
"""What a change of the data explains."""
_WRITTEN = ("WeightsReplaced", "WeightsChangedOutsideStep", "OptimizerStateLost")
AFTER_WRITE = 4
"""Steps after a write by which a rule has seen what it did to the loss."""
_RISES = ("LossDivergence", "LossPlateau")
"""Those of a level, whose beginning is the best level before the rise."""
PART = 16
"""Records whose median is the level of the loss before or after a change of the data."""
LATER_FALL = 0.9
"""Ratio of the later median to that of a loss that stood still, from which it was learned after all."""
SHARE = 0.25
"""Share of a rise that may come before the change of the data that explains it, and that is learned after one."""
_MAY_BE_NOISE = ("LossSpike", "LossShift", "GradientNormExplosion")
HIGH = 1 / 3
"""Share of the height of a spike from which records elsewhere in the curve count as its noise."""
USUAL = 3.0
"""Ratio to the usual time between two records up to which a gap is no pause."""
ELSEWHERE = 2
"""Number of other places that high from which a rule's spike counts as noise of the curve."""


@dataclass(frozen=True)
class Hindsight:
    """Incidents in order of their first step, and the steps between two records."""

    incidents: tuple[Incident, ...]
    spacing: float


def in_hindsight(
    run: LogRun,
    by_rules: Sequence[Incident],
    watched: bool,
    data_changes: Sequence[int] = (),
    fresh_starts: Sequence[int] = (),
    model_changes: Sequence[int] = (),
) -> Hindsight:
    """Run the detectors over a run, and merge their incidents with those of the rules.

    data_changes: steps at which the loss jumped together with the data. fresh_starts: steps at which training
    started over. model_changes: steps at which other parameters were seen.
    """
    found = list(segments(run, watched))
    spacing = _spacing(run)
    with np.errstate(all="ignore"):
        detected = [_explained(one, data_changes, TOGETHER * spacing, found) for one in detect_in(found)]
        detected = [_begun_anew(one, fresh_starts, TOGETHER * spacing) for one in detected]
        detected = [_of_new_model(one, model_changes, TOGETHER * spacing, found) for one in detected]
        detected = [_supported(one, by_rules, TOGETHER * spacing, watched) for one in detected]
        merged = _merged(detected, by_rules, TOGETHER * spacing, found)
    return Hindsight(tuple(merged), spacing)


def _spacing(run: LogRun) -> float:
    """Steps between records in at least half of the run: an alert brings many records of a few steps."""
    apart = np.sort(np.diff(np.unique(run.steps)))
    if not len(apart):
        return 1.0
    return float(apart[np.searchsorted(np.cumsum(apart), apart.sum() / 2)])


def _merged(
    detected: Sequence[Incident], by_rules: Sequence[Incident], margin: float, found: Sequence[RunSegment]
) -> list[Incident]:
    mine: list[list[Incident]] = [[] for _ in detected]
    alone: list[Incident] = []
    for incident in by_rules:
        place = _same(incident, detected, margin)
        if place is None and not _is_usual(incident, found):
            alone.append(_judged(incident, found))
        elif place is None:
            continue
        else:
            mine[place].append(incident)
    both = [_joined(one, rules) if rules else one for one, rules in zip(detected, mine, strict=True)]
    return sorted([*both, *alone], key=lambda i: (i.first_step, rank(i.severity)))


def _explained(incident: Incident, data_changes: Sequence[int], margin: float, found: Sequence[RunSegment]) -> Incident:
    """An incident of the loss that begins where the data changed is information."""
    if incident.condition not in _WITH_DATA:
        return incident
    at = next((step for step in data_changes if abs(incident.first_step - step) <= margin), None)
    if at is None and incident.condition in _RISES:
        at = _risen_with_data(incident, data_changes, segment_of(incident, found))
    if at is None:
        return incident
    text = f"{incident.text} The data changed at step {at}, and the loss was learned again."
    return replace(incident, severity="info", text=text)


def _begun_anew(incident: Incident, fresh_starts: Sequence[int], margin: float) -> Incident:
    """A jump of the loss where weights and optimizer are new is information: the program starts over."""
    at = next((step for step in fresh_starts if abs(incident.first_step - step) <= margin), None)
    if at is None or incident.condition not in _WITH_DATA:
        return incident
    text = f"{incident.text} The optimizer has no state at step {at} either: the program starts over."
    return replace(incident, severity="info", text=text)


def _of_new_model(
    incident: Incident, model_changes: Sequence[int], margin: float, found: Sequence[RunSegment]
) -> Incident:
    """A jump of the loss where the model was changed is information, if the loss falls again: a new head, say."""
    at = next((step for step in model_changes if abs(incident.first_step - step) <= margin), None)
    if at is None or incident.condition not in _WITH_DATA or not _falls_again(at, segment_of(incident, found)):
        return incident
    text = f"{incident.text} The model has changed at step {at}, and the loss falls since."
    return replace(incident, severity="info", text=text)


def _falls_again(at: int, segment: RunSegment | None) -> bool:
    """Has a share of a jump at this step been learned by the end?"""
    loss = None if segment is None else segment.finite_loss
    start = 0 if loss is None else int(np.searchsorted(loss.steps, at))
    if loss is None or not 0 < start < len(loss.values) - 1:
        return False
    later = loss.values[start:]
    quarter = max(len(later) // 4, 1)
    before, jumped, end = (
        float(np.median(part))
        for part in (loss.values[max(start - PART, 0) : start], later[: min(quarter, PART)], later[-quarter:])
    )
    return jumped > before and end < jumped - SHARE * (jumped - before)


def _supported(incident: Incident, by_rules: Sequence[Incident], margin: float, watched: bool) -> Incident:
    """A watched run shows whether weights were written, or an optimizer begins again: else no training starts over."""
    if not watched or incident.condition != "Reinitialisation":
        return incident
    near = [i for i in by_rules if abs(i.first_step - incident.first_step) <= margin + AFTER_WRITE]
    if any(i.condition in _WRITTEN for i in near):
        return incident
    text = incident.text.partition(" while the step counter")[0]
    text += ". No rule has told of other weights, or of an optimizer without its state."
    return replace(incident, condition="LossDivergence", confidence="likely", text=text)


def _risen_with_data(incident: Incident, data_changes: Sequence[int], segment: RunSegment | None) -> int | None:
    """The first change of the data after the beginning of a rise, if the loss has risen there and nowhere else."""
    loss = None if segment is None else segment.finite_loss
    after = [step for step in data_changes if step > incident.first_step]
    if loss is None or not after:
        return None
    start, first, last = np.searchsorted(loss.steps, (incident.first_step, after[0], after[-1]))
    levels = [
        float(np.median(part)) if len(part) else np.nan
        for part in (
            loss.values[max(start - PART, 0) : start + 1],
            loss.values[max(first - PART, start) : first],
            loss.values[first : first + PART],
            loss.values[last : last + PART],
            loss.values[last:][-PART:],
        )
    ]
    best, before, risen, settled, end = levels
    by_data = before - best <= SHARE * (risen - best) and end <= max(CLIMBS * settled, settled)
    return after[0] if by_data else None


def _same(incident: Incident, detected: Sequence[Incident], margin: float) -> int | None:
    """Index of the detector's incident for the same thing: it overlaps, and has the nearest onset."""
    kin = SAME.get(incident.condition, ())
    near = [
        (abs(other.first_step - incident.first_step), place)
        for place, other in enumerate(detected)
        if other.condition in kin and _overlap(incident, other, margin)
    ]
    return min(near)[1] if near else None


def _overlap(one: Incident, other: Incident, margin: float) -> bool:
    ends = [float("inf") if i.last_step is None else i.last_step + margin for i in (one, other)]
    return one.first_step <= ends[1] and other.first_step <= ends[0]


def _joined(detected: Incident, by_rules: Sequence[Incident]) -> Incident:
    """One incident from that of a detector and those of rules for the same thing.

    For a loss, the severity is the detector's, which knows the outcome; otherwise the highest one.
    """
    severities = [detected.severity, *(i.severity for i in by_rules)]
    hindsight = detected.condition == "TrainingPaused" or all(i.condition in _LOSS for i in by_rules)
    hindsight = hindsight or (detected.condition == "GradientNormExplosion" and not detected.is_problem)
    over = detected.last_step is not None and all(i.last_step is not None for i in by_rules)
    skipped = detected.condition == "NonFinite" and detected.last_step is not None and not detected.is_problem
    skipped = skipped and not any(i.layers for i in by_rules)
    known = skipped or (hindsight and (over or not detected.is_problem))
    severity = detected.severity if known else min(severities, key=rank)
    live = min(i.live_step for i in by_rules if i.live_step is not None)
    alerts = tuple(a for i in by_rules for a in i.alerts)
    fired = gravest([a for a in alerts if a.state == "firing"])
    return replace(
        detected,
        severity=severity,
        layers=tuple(dict.fromkeys(layer for i in by_rules for layer in i.layers)),
        rank=next((i.rank for i in by_rules if i.rank is not None), detected.rank),
        evidence=(*detected.evidence, f"Live: {fired.rule} fired at step {live}."),
        found_by=("rule", "detector"),
        live_step=live,
        alerts=alerts,
    )


def _judged(incident: Incident, found: Sequence[RunSegment]) -> Incident:
    """An incident that only rules found; it becomes information if the whole run shows no problem."""
    withdrawn = WITHDRAWN.get(incident.condition)
    if withdrawn is not None and (text := withdrawn(incident, found)):
        return replace(incident, severity="info", text=text)
    if not incident.is_problem or (incident.last_step is None and incident.condition != "LossSpike"):
        return incident
    if incident.condition == "RankHoldsUp":
        return replace(incident, severity="info", text=f"{incident.text} The run continued.")
    if incident.condition == "TrainingStopped":
        text = f"{incident.text} The run continued at step {incident.last_step}."
        name = "TrainingPaused" if incident.severity == "warning" else "TrainingStopped"
        return replace(incident, condition=name, severity="info", text=text)
    segment = segment_of(incident, found)
    if incident.condition == "LossConstant" and segment is not None and (learned := _learned_later(incident, segment)):
        return replace(incident, severity="info", text=f"{incident.text} {learned}")
    if incident.condition == "LearningRateZero" and segment is not None and not segment.watched:
        text = (
            f"The learning rate is printed as 0 up to step {incident.last_step}, and above 0 later: a warm-up, or too "
            f"few digits."
        )
        return replace(incident, severity="info", text=text)
    free = segment is not None and not segment.must_fall and incident.condition == "LossDivergence"
    if segment is None or not (free or incident.condition in _MAY_BE_NOISE):
        return incident
    what = "gradient norm" if incident.condition == "GradientNormExplosion" else segment.loss_name
    if what != "gradient norm" and not segment.must_fall:
        why = "In reinforcement learning and adversarial training a rising loss need not be bad."
    elif (others := _as_high_elsewhere(incident, segment)) >= ELSEWHERE:
        why = (
            f"Over the whole run this looks like noise of the curve: in {others} other places the {what} is a third as "
            f"far above its level, or more."
        )
    else:
        return incident
    over = incident.last_step is not None
    text = f"{incident.text} {f'The {what} had recovered at step {incident.last_step}. ' * over}{why}"
    return replace(incident, severity="info", text=text)


def _learned_later(incident: Incident, segment: RunSegment) -> str:
    """What to say of a loss that stood still at first, and fell later; empty for others."""
    loss = segment.finite_loss
    if loss is None or incident.last_step is None:
        return ""
    at = int(np.searchsorted(loss.steps, incident.last_step))
    before, after = loss.values[: at + 1], loss.values[at:]
    if not len(after) or float(np.median(after)) > LATER_FALL * float(np.median(before)):
        return ""
    return f"From step {incident.last_step} on it fell, to {np.median(after[-PART:]):.4g} at the end: a late start."


def _is_usual(incident: Incident, found: Sequence[RunSegment]) -> bool:
    """Whether a pause that a rule found is no longer than others between two records of another trainer's log."""
    segment = segment_of(incident, found)
    if incident.condition != "TrainingStopped" or incident.last_step is None or segment is None or segment.watched:
        return False
    known = np.isfinite(segment.times)
    gaps, steps = np.diff(segment.times[known]), segment.steps[known]
    here = gaps[(steps[:-1] >= incident.first_step) & (steps[1:] <= incident.last_step)]
    return len(gaps) > 1 and len(here) > 0 and float(here.max()) <= USUAL * float(np.median(gaps))


def _as_high_elsewhere(incident: Incident, segment: RunSegment) -> int:
    """Number of other places where the curve is a third as far above its level."""
    steps, rise = _rise(segment, incident.condition == "GradientNormExplosion")
    if not len(steps):
        return 0
    last = steps[-1] + 1 if incident.last_step is None else incident.last_step
    start, stop = np.searchsorted(steps, (incident.first_step, last))
    peak = float(rise[start : max(stop, start + 1)].max(initial=0.0))
    high = rise > HIGH * peak
    high[max(start - SUSTAINED, 0) : stop + SUSTAINED] = False
    return len(spans(high)) if peak > 0 else 0


def _rise(segment: RunSegment, gradient: bool) -> tuple[NDArray[np.int64], Array]:
    """Steps, and the height of a curve above its past median, in levels of the curve."""
    curve = segment.of("grad_norm") if gradient else segment.finite_loss
    if curve is None or not len(curve):
        return np.empty(0, np.int64), np.empty(0)
    if gradient:
        finite = np.isfinite(curve.values)
        values = curve.values[finite]
        return curve.steps[finite], np.nan_to_num(values / past_median(values) - 1)
    reference = segment.reference
    assert reference is not None
    return curve.steps, np.nan_to_num((curve.values - reference.base) / reference.scale)
