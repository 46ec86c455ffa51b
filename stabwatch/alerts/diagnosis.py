"""From alerts to causes, ordered by onset: what left its normal range first, where, and what helps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from stabwatch.alerts.engine import Engine
from stabwatch.alerts.root_causes import RECENT, ROOT_CAUSES, TOGETHER, Evidence
from stabwatch.alerts.rule import SEVERITIES, Alert
from stabwatch.alerts.templates import format_batch

MOST_BATCHES = 4
"""Batches of one step that are told."""


@dataclass(frozen=True)
class Cause:
    """One possible cause, with what speaks for it and what to do.

    layers: where, the earliest first. confidence: 0 to 1, a rank and not a probability.
    """

    name: str
    title: str
    since_step: int
    layers: tuple[str, ...]
    evidence: tuple[str, ...]
    remedy: tuple[str, ...]
    references: tuple[str, ...]
    confidence: float
    runbook_url: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in one sentence, and the causes in the order of their onset."""

    verdict: str
    causes: tuple[Cause, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def diagnose(engine: Engine) -> Diagnosis:
    """What the alerts of a run so far amount to."""
    firing = [a for a in engine.history if a.state == "firing"]
    fired = [a for a in firing if a.severity != "info"]
    if not fired:
        return Diagnosis(" ".join((_calm(engine), *dict.fromkeys(a.summary for a in firing))))
    by_rule: dict[str, list[Alert]] = {}
    for alert in fired:
        by_rule.setdefault(alert.rule, []).append(alert)
    groups = _ranked(list(by_rule.values()))
    causes = [_cause(engine, group, place) for place, group in enumerate(groups)]
    ordered = sorted(firing, key=lambda a: (a.onset, a.step))
    loud, notes = ([a for a in ordered if (a.severity == "info") == quiet] for quiet in (False, True))
    evidence = Evidence(loud, notes, engine.memory)
    return Diagnosis(_verdict(groups, engine), tuple(_with_roots(evidence, causes)))


def _calm(engine: Engine) -> str:
    if engine.last_step is None:
        return "Nothing has been recorded yet."
    return f"Nothing left its normal range up to step {engine.last_step}."


def _ranked(groups: list[list[Alert]]) -> list[list[Alert]]:
    """By onset; onsets too close to tell apart (signals are sampled) by severity. A stopped process comes last."""
    earliest = min(_onset(g) for g in groups)

    def order(group: list[Alert]) -> tuple[bool, int, int, int]:
        gravest = min(SEVERITIES.index(a.severity) for a in group)  # type: ignore[arg-type]
        together = _onset(group) <= earliest + TOGETHER
        return (group[0].rule == "TrainingStopped", 0 if together else _onset(group), gravest, _onset(group))

    return sorted(groups, key=order)


def _onset(group: list[Alert]) -> int:
    return min(a.onset for a in group)


def _first(group: list[Alert]) -> Alert:
    return min(group, key=lambda a: (a.onset, a.step))


def _layers(group: list[Alert]) -> tuple[str, ...]:
    ordered = sorted(group, key=lambda a: (a.onset, a.step))
    return tuple(dict.fromkeys(a.layer for a in ordered if a.layer))


def _verdict(groups: list[list[Alert]], engine: Engine) -> str:
    group = groups[0]
    first, layers = _first(group), _layers(group)
    where = f", first in layer {layers[0]}" if layers else ""
    others = f" {len(layers)} layers are affected." if len(layers) > 1 else ""
    summary = engine.rules[first.rule].summary.rstrip(".")
    still = any(a.rule == first.rule for a in engine.active)
    over = "" if still else " It has calmed down since."
    known = _announced(engine, first.onset) + _guarded(engine)
    return f"{summary}{where}, since step {first.onset}.{others}{_loss_so_far(group)}{over}{known}"


def _announced(engine: Engine, onset: int) -> str:
    near = [(step, what) for step, what in engine.memory.announced if 0 <= onset - step <= RECENT]
    return f" A change was announced at step {near[-1][0]}: {near[-1][1]}." if near else ""


def _guarded(engine: Engine) -> str:
    done = engine.memory.guarded
    if not done:
        return ""
    times = f"; guards acted {len(done)} times, this was the last" if len(done) > 1 else ""
    return f" At step {done[-1][0]} the guard {done[-1][1]}{times}."


def _loss_so_far(group: list[Alert]) -> str:
    alert = _first(group)
    before, now = alert.context.get("loss_at_onset"), alert.context.get("loss")
    if alert.rule in ("LossSpike", "LossShift", "LossDivergence") or before is None or now is None:
        return ""
    if abs(now - before) <= 0.25 * abs(before) or now < before:
        return f" The loss did not show it: {before:.3g} before, {now:.3g} when it fired."
    return f" The loss went from {before:.3g} to {now:.3g}."


def _cause(engine: Engine, group: list[Alert], place: int) -> Cause:
    first, rule = _first(group), engine.rules[group[0].rule]
    critical = any(a.severity == "critical" for a in group)
    return Cause(
        name=rule.name,
        title=rule.title,
        since_step=first.onset,
        layers=_layers(group),
        evidence=(*_evidence(group), *_batches(engine, first)),
        remedy=rule.remedy,
        references=rule.references,
        confidence=round((0.9 if critical else 0.6) * 0.7**place, 2),
        runbook_url=rule.runbook_url,
    )


def _evidence(group: list[Alert]) -> tuple[str, ...]:
    first = _first(group)
    worst = max(group, key=lambda a: a.value if a.value is not None and math.isfinite(a.value) else -math.inf)
    lines = [f"Step {first.onset}: left its normal range. Step {first.step}: {first.description}"]
    if worst is not first and worst.layer != first.layer:
        lines.append(f"Step {worst.step}: {worst.description}")
    layers = _layers(group)
    if len(layers) > 1:
        lines.append(
            f"Order of the layers: {', '.join(layers[:6])}{f' and {len(layers) - 6} more' if len(layers) > 6 else ''}."
        )
    for name, words in (("loss", "loss"), ("gradient_norm_before_clip", "gradient norm before clipping")):
        before, now = first.context.get(f"{name}_at_onset"), first.context.get(name)
        if before is not None and now is not None:
            lines.append(f"The {words} was {before:.4g} before the onset and {now:.4g} when this fired.")
    if first.rule == "NonFinite" and first.context.get("rank_nonfinite_max", 0) > 0:
        rank = first.context["rank_nonfinite_worst"]
        if rank >= 0:
            lines.append(f"Rank {rank:.0f} counted the most non-finite values at first.")
        else:
            lines.append("When they were first counted every rank had some: which rank was the first, is not known.")
    return tuple(lines)


def _batches(engine: Engine, first: Alert) -> tuple[str, ...]:
    """The batch of the onset; the first of them where gradients were accumulated, or steps passed unmeasured."""
    known = engine.memory.batches.get(first.onset, [])
    lines = [f"Batch of step {entry['step']}: {format_batch(entry)}." for entry in known[:MOST_BATCHES]]
    if known and first.since < first.onset:
        lines.insert(0, f"Steps {first.since} to {first.onset} were measured as one: it began in any of them.")
    return (*lines, *([f"And {len(known) - MOST_BATCHES} more batches."] if len(known) > MOST_BATCHES else []))


def _with_roots(evidence: Evidence, causes: list[Cause]) -> list[Cause]:
    """What explains the alerts goes before them, or after the first of them where it only may."""
    leading: list[Cause] = []
    following: list[Cause] = []
    for root in ROOT_CAUSES:
        found = root.find(evidence)
        if found:
            made = Cause(
                name=root.name,
                title=root.title,
                since_step=found.since_step,
                layers=found.layers,
                evidence=found.evidence,
                remedy=root.remedy,
                references=root.references,
                confidence=round(found.confidence * 0.7 ** len(leading), 2),
                runbook_url=root.runbook_url,
            )
            (leading if found.leads else following).append(made)
    return [*leading, *causes[:1], *following, *causes[1:]]
