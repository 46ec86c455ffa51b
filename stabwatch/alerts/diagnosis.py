"""From incidents to causes, in order of onset: what left its normal range first, where, and the remedy."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.conditions import CONDITIONS, title_of
from stabwatch.alerts.engine import Engine
from stabwatch.alerts.evidence import RECENT, TOGETHER, Evidence, Found, RootCause
from stabwatch.alerts.incidents import Confidence, Incident, gravest, is_over, rank, rule_incidents, worst_of
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.alerts.rule import Alert
from stabwatch.alerts.run_context import HABITS
from stabwatch.alerts.templates import format_batch, group_names

MOST_BATCHES = 4
"""Most batches of one step that are listed."""
LIKELY = 0.5
"""Score from which a cause is likely. docs/reports.md tells how often causes of each word are right."""
SYMPTOM = 0.45
"""Score of a symptom as the first cause: it tells that something went wrong, and not what."""
logger = logging.getLogger("stabwatch")

EXPLAINED = {
    "LossLostAtRateJump": ("LearningRateSpike",),
    "NoUpdates": ("ZeroGradients", "LearningRateZero", "UpdatesZero"),
    "LearningRateZero": ("ScheduleStandsStill",),
    "UpdatesZero": ("UpdatesLost",),
    "PartWithZeroGradient": ("ZeroGradients", "PartWithoutGradient", "RouterCollapse", "CodebookCollapse"),
    "PartGradientBecameZero": ("ZeroGradients", "PartLostGradient", "DeadUnits", "RouterCollapse", "CodebookCollapse"),
    "GradientsThrownAway": ("ZeroGradients",),
    "WeightsDecayAway": ("WeightDecayTooLarge",),
    "VanishingOverDepth": ("PartWithZeroGradient", "PartGradientBecameZero"),
    "LayerStandsStill": ("ZeroGradients", "UpdatesLost", "UpdatesTooSmall", "UpdatesZero"),
    "LossConstant": ("ZeroGradients", "LearningRateZero", "VanishingGradients", "VanishingOverDepth"),
    "AdamEpsilonTooLarge": ("VanishingOverDepth",),
    "LossDivergence": ("LossWithoutBound",),
    **dict.fromkeys(("LossTooGood", "OutputsConstant"), ("ZeroGradients",)),
    "DoubleSigmoid": ("DoubleSoftmax",),
    "WeightsChangedOutsideStep": ("WeightsReplaced",),
    **dict.fromkeys(("NoBetterThanMean", "NotLearning"), ("WarmUpTooLong", "ScheduleStandsStill")),
    "BadBatch": ("Reinitialisation",),
    "InputsGrow": ("InputsNotScaled",),
    "RepeatedBatches": ("InputsBecameAlike", "InputsConstant"),
    **dict.fromkeys(("LossSpike", "OddBatches"), ("DataNotShuffled",)),
    "LoneLosses": ("BadBatch", "DataNotShuffled"),
}
"""Conditions that say nothing more where another one is named, whose evidence they are."""
_LOSS = ("LossSpike", "LossShift", "LossDivergence")
_SYMPTOMS = (*_LOSS, "NonFinite")
_OF_LOSS = ("LossConstant", "LossLostAtRateJump", "LossStuck", "LossWithoutBound", "OddBatches")
"""Rules that speak of the loss itself."""
OUTCOMES = ("NotLearning", "NoBetterThanMean")
"""They say that nothing is learned, and not why: what else began before they were seen comes first."""
_SPIKE_AFTER = "A loss spike"
"""Title of a spike that follows another problem. The rule's title says that nothing preceded it."""


@dataclass(frozen=True)
class Cause:
    """One possible cause, with its evidence and remedy.

    name: in the catalogue of conditions. layers: affected layers, the earliest first.
    """

    name: str
    title: str
    since_step: int
    layers: tuple[str, ...]
    evidence: tuple[str, ...]
    remedy: tuple[str, ...]
    references: tuple[str, ...]
    confidence: Confidence
    runbook_url: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """A verdict of one or a few sentences, and the causes in order of onset."""

    verdict: str
    causes: tuple[Cause, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class _Group:
    """All incidents of one condition above information. alerts: the firing alerts of its rules."""

    def __init__(self, incidents: Sequence[Incident]) -> None:
        self.incidents = sorted(incidents, key=lambda i: i.first_step)
        self.name = incidents[0].condition
        self.severity = worst_of(incidents)
        self.alerts = [a for i in incidents for a in i.alerts if a.state == "firing" and a.severity != "info"]
        self.alerts.sort(key=lambda a: (a.onset, a.step))
        self.detected = next((i for i in self.incidents if "detector" in i.found_by), None)
        self.layers = tuple(dict.fromkeys(a.layer for a in self.alerts if a.layer))

    @property
    def onset(self) -> int:
        """The rules' onset is exact to the record; a detector may place a slow rise earlier."""
        return min((a.onset for a in self.alerts), default=self.incidents[0].first_step)

    @property
    def seen(self) -> float:
        """The step at which a rule fired; infinite where only a look at the whole log has shown it."""
        return min((i.live_step for i in self.incidents if i.live_step is not None), default=math.inf)

    @property
    def first(self) -> Alert:
        """The alert with the earliest onset."""
        return self.alerts[0]


def diagnose(
    engine: Engine, incidents: Sequence[Incident] | None = None, spacing: float = 1.0, watched: bool = True
) -> Diagnosis:
    """Diagnose the incidents of a run.

    incidents: of rules and detectors; by default, those of the engine's alerts so far, as in a live run. spacing: steps
    between two records. watched: stabwatch wrote the log.
    """
    found = rule_incidents(engine.history) if incidents is None else incidents
    by_name: dict[str, list[Incident]] = {}
    for incident in found:
        if incident.is_problem:
            by_name.setdefault(incident.condition, []).append(incident)
    notes = [a for i in found for a in i.alerts if not i.is_problem and a.state == "firing"]
    if not by_name:
        return Diagnosis(" ".join((_calm(engine), *dict.fromkeys(a.summary for a in notes if a.severity == "info"))))
    seen = [mine for name, mine in by_name.items() if by_name.keys().isdisjoint(EXPLAINED.get(name, ()))]
    groups = _ranked([_Group(mine) for mine in seen], TOGETHER * spacing)
    causes = [_cause(engine, group, place, watched) for place, group in enumerate(groups)]
    firing = sorted((a for group in groups for a in group.alerts), key=lambda a: (a.onset, a.step))
    quiet = sorted((a for a in engine.history if a.severity == "info" and a.state == "firing"), key=_by_onset)
    evidence = Evidence(firing, quiet, engine.memory, _onset(groups), spacing, watched)
    causes = _with_roots(evidence, causes)
    jump = _rate_jump(found, causes, _onset(groups), spacing)
    causes = [jump, *causes] if jump else causes
    named = {cause.name for cause in causes}
    causes = [cause for cause in causes if named.isdisjoint(EXPLAINED.get(cause.name, ()))]
    return Diagnosis(_verdict(groups, engine) + _in_doubt(causes, engine, groups[0].name), tuple(causes))


def _by_onset(alert: Alert) -> tuple[int, int]:
    return alert.onset, alert.step


def _calm(engine: Engine) -> str:
    if engine.last_step is None:
        return "Nothing has been recorded yet."
    steps = engine.data_changes
    what = f" The data changed, and the loss with them, at step {' and '.join(map(str, steps))}." if steps else ""
    habits = [text for signal, text in HABITS.items() if engine.memory.is_habit(signal)]
    return f"Nothing left its normal range up to step {engine.last_step}.{what}{''.join(habits)}"


def _onset(groups: Sequence[_Group]) -> int:
    """First onset of all groups; that of a stopped process counts only if it is the only one."""
    return min((g.onset for g in groups if g.name != "TrainingStopped"), default=groups[0].onset)


def _ranked(groups: list[_Group], together: float) -> list[_Group]:
    """In order of onset; by severity if onsets are too close (signals are sampled). A stopped process comes last."""
    earliest = min(g.onset for g in groups)

    def order(group: _Group) -> tuple[bool, bool, float, int, int]:
        near = group.onset <= earliest + together
        symptom = not (near and _is_fact(group.name))
        place = group.seen if group.name in OUTCOMES else 0 if near else group.onset
        return (group.name == "TrainingStopped", symptom, place, rank(group.severity), group.onset)

    return sorted(groups, key=order)


def _is_fact(name: str) -> bool:
    rule = BY_NAME.get(name)
    return rule is not None and rule.fact


def _verdict(groups: Sequence[_Group], engine: Engine) -> str:
    group = groups[0]
    known = _announced(engine, group.onset) + _guarded(engine)
    origin = next((o for o in engine.memory.origins if o.since <= group.onset <= o.step), None)
    if group.name == "NonFinite" and origin is not None:
        over = "" if any(a.rule == group.name for a in engine.active) else " Later values were finite again."
        return f"{' '.join(filter(None, (origin.sentence, origin.loss_sentence)))}{over}{known}"
    if group.detected is not None and not group.layers:
        also = [title_of(other.name).lower() if other.name in CONDITIONS else other.name for other in groups[1:]]
        more = f" Also: {', '.join(also)}." if also else ""
        return f"{group.detected.text}{more}{known}"
    first, layers = group.first, group.layers
    where = f", first in layer {layers[0]}" if layers else ""
    others = f" {len(layers)} layers are affected." if len(layers) > 1 else ""
    if first.rule == "RankHoldsUp":
        return f"{first.summary} {first.description}{known}"
    summary = gravest([a for a in group.alerts if a.rule == first.rule]).summary.rstrip(".")
    gone = is_over(first.rule, group.onset, ((a.rule, a.onset) for a in engine.active))
    over = " It has returned to normal since." if gone else ""
    return f"{summary}{where}, since step {first.onset}.{others}{_loss_so_far(first, groups)}{over}{known}"


def _in_doubt(causes: Sequence[Cause], engine: Engine, told: str) -> str:
    """What a reader is told where the first cause is not what the verdict tells, not the only one, or none.

    told: the condition that the verdict tells.

    Nothing without signals by layer: what such a log cannot show is said apart.
    """
    if not any(key.layer for key in engine.derived):
        return ""
    first, others = causes[0], [c for c in causes[1:] if c.confidence == causes[0].confidence]
    if first.confidence == "certain" or first.name == "TrainingStopped":
        return ""
    if all(c.name in _SYMPTOMS or c.confidence == "possible" for c in causes):
        return " What caused it is not known."
    others = [c for c in others if c.name not in ("NonFinite", told)]  # which the first one explains, or is told
    lead = f" {first.confidence.capitalize()} cause: {first.title}." if told not in (first.name, "NonFinite") else ""
    return lead + (f" As {first.confidence} a cause: {others[0].title}." if others else "")


def _announced(engine: Engine, onset: int) -> str:
    near = [text for step, text in engine.memory.announced if 0 <= onset - step <= RECENT]
    return f" {near[-1]}" if near else ""


def _guarded(engine: Engine) -> str:
    done = engine.memory.guarded
    if not done:
        return ""
    times = f"; guards acted {len(done)} times, this was the last" if len(done) > 1 else ""
    return f" At step {done[-1][0]} the guard {done[-1][1]}{times}."


def _loss_so_far(alert: Alert, groups: Sequence[_Group]) -> str:
    before, now = alert.context.get("loss_at_onset"), alert.context.get("loss")
    if alert.rule in (*_LOSS, "LoneLosses"):
        return ""
    if alert.context.get("loss_nonfinite_step") == alert.step:
        return f" The loss was not finite at step {alert.step}."
    at = alert.context.get("loss_step")
    if now is None or at is None:
        return ""
    when = "when it fired" if at == alert.step else f"at step {at:.0f}, the last one known to be finite"
    if alert.rule == "NonFinite":
        return f" The loss was {now:.3g} {when}."
    if before is None:
        return ""
    if alert.rule not in _OF_LOSS and (abs(now - before) <= 0.25 * abs(before) or now < before):
        shown = min((g.onset for g in groups if g.name in _LOSS and g.onset < alert.onset), default=None)
        if shown is not None:
            return f" The loss had left its normal range before, at step {shown}: {now:.3g} {when}."
        return f" The loss did not show it: {before:.3g} before, {now:.3g} {when}."
    return f" The loss went from {before:.3g} to {now:.3g}."


def _confidence(score: float, place: int) -> Confidence:
    """Each earlier cause makes a later one less likely."""
    return "likely" if score * 0.7**place >= LIKELY else "possible"


def _score(group: _Group, place: int) -> float:
    if group.name in _SYMPTOMS and not place:
        return SYMPTOM
    return 0.9 if group.severity == "critical" else 0.6


def _cause(engine: Engine, group: _Group, place: int, watched: bool) -> Cause:
    known = CONDITIONS.get(group.name)
    rule = engine.rules.get(group.name)
    declared = rule or known
    title = _SPIKE_AFTER if place and group.name == "LossSpike" else declared.title if declared else group.name
    evidence = _detected_evidence(group)
    rank = engine.memory.nonfinite_ranks.get(group.first.onset) if group.name == "NonFinite" and group.alerts else None
    if group.alerts and (watched or not evidence):  # the names of signals say nothing to the reader of another log
        evidence += _alert_evidence(group, rank)
    if group.alerts:
        evidence += _batches(engine, group.first, rank)
    return Cause(
        name=group.name,
        title=title,
        since_step=group.onset if watched or group.detected is None else group.detected.first_step,
        layers=group.layers or engine.memory.layers_of(group.name),
        evidence=tuple(evidence),
        remedy=declared.remedy if declared else (),
        references=declared.references if declared else (),
        confidence="certain" if _is_fact(group.name) else _confidence(_score(group, place), place),
        runbook_url=declared.runbook_url if declared else "",
    )


def _detected_evidence(group: _Group) -> list[str]:
    """Evidence of the first incident that a detector found in hindsight."""
    if group.detected is None:
        return []
    seen = [i for i in group.incidents if "detector" in i.found_by]
    line = f" Line {group.detected.line} of the log." if group.detected.line is not None else ""
    times = f" It happened {len(seen)} times in this log." if len(seen) > 1 else ""
    evidence = [e for e in group.detected.evidence if not e.startswith("Live: ")]  # the alert itself follows
    return [f"{group.detected.text}{line}{times}", *evidence]


def _alert_evidence(group: _Group, nonfinite_rank: int | None) -> list[str]:
    first, layers = group.first, group.layers
    finite = [a for a in group.alerts if a.value is not None and math.isfinite(a.value)]
    worst = max(finite, key=lambda a: a.value or 0.0, default=gravest(group.alerts))
    left = "" if first.onset == first.step else f"Step {first.onset}: left its normal range. "
    lines = [f"{left}Step {first.step}: {first.description}"]
    if first.rule == "RankHoldsUp":
        lines = [f"Step {first.step}: {first.description}"]
    if worst is not first and worst.layer != first.layer:
        lines.append(f"Step {worst.step}: {worst.description}")
    if len(layers) > 1:
        names = group_names(layers)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(f"Order of the layers: {', '.join(names[:6])}{more}.")
    alone = (group.detected and not layers) or first.rule == "NonFinite"  # what the numbers were before says nothing
    numbers = () if alone else ("loss", "gradient_norm_before_clip")
    for name in numbers:
        words = "loss" if name == "loss" else "gradient norm before clipping"
        before, now = first.context.get(f"{name}_at_onset"), first.context.get(name)
        if before is not None and now is not None:
            lines.append(f"The {words} was {before:.4g} before the onset and {now:.4g} when the alert fired.")
    if first.rule == "NonFinite" and nonfinite_rank is not None:
        if nonfinite_rank >= 0:
            lines.append(f"Rank {nonfinite_rank} counted the most non-finite values at first.")
        else:
            lines.append("In the first step with non-finite values every rank had some. Which was first is not known.")
    return lines


def _batches(engine: Engine, first: Alert, rank: int | None) -> tuple[str, ...]:
    """Batches of the onset: several with gradient accumulation, or where some steps were not measured.

    Those of `rank` come first.
    """
    known = sorted(engine.memory.batches.get(first.onset, []), key=lambda entry: entry.get("rank", 0) != rank)
    lines = [f"Batch of step {entry['step']}: {format_batch(entry)}." for entry in known[:MOST_BATCHES]]
    if known and first.since < first.onset:
        lines.insert(0, f"Steps {first.since} to {first.onset} were measured together: it began in one of them.")
    return (*lines, *([f"And {len(known) - MOST_BATCHES} more batches."] if len(known) > MOST_BATCHES else []))


def _with_roots(evidence: Evidence, causes: list[Cause]) -> list[Cause]:
    """Insert root causes: before the causes that rules name, or after the first of them if only possible."""
    leading: list[Cause] = []
    following: list[Cause] = []
    for root in ROOT_CAUSES:
        found = _found(root, evidence)
        if found:
            (leading if found.leads else following).append(_root(root, found, len(leading)))
    facts = [
        cause for cause in causes if _is_fact(cause.name) and cause.since_step <= evidence.onset + evidence.together
    ]
    symptoms = [cause for cause in causes if cause not in facts]
    return [*facts, *leading, *symptoms[:1], *following, *symptoms[1:]]


def _found(root: RootCause, evidence: Evidence) -> Found | None:
    """What a root cause finds; an error in it must not take the others away."""
    try:
        return root.find(evidence)
    except Exception:
        logger.exception("the cause %s could not be looked for; the others were. Please report this.", root.name)
        return None


def _root(root: RootCause, found: Found, place: int) -> Cause:
    return Cause(
        name=root.name,
        title=root.title,
        since_step=found.since_step,
        layers=found.layers,
        evidence=found.evidence,
        remedy=root.remedy,
        references=root.references,
        confidence=_confidence(found.confidence, place),
        runbook_url=root.runbook_url,
    )


def _rate_jump(found: Sequence[Incident], causes: Sequence[Cause], onset: int, spacing: float) -> Cause | None:
    """A jump of the learning rate that only a detector saw, shortly before the first problem."""
    name = "LearningRateSpike"
    near = [i for i in found if i.condition == name and 0 <= onset - i.first_step <= RECENT * spacing]
    if not near or any(cause.name == name for cause in causes):
        return None
    known, jump = CONDITIONS[name], near[0]
    line = f" Line {jump.line} of the log." if jump.line is not None else ""
    evidence = (f"{jump.text}{line}", *jump.evidence)
    return Cause(
        name, known.title, jump.first_step, (), evidence, known.remedy, known.references, "likely", known.runbook_url
    )
