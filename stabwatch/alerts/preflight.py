"""The set-up of a run, judged from its first steps: what is wrong shows there, and the rules of a run wait longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stabwatch.alerts.catalogue import DERIVED, RULES
from stabwatch.alerts.engine import Engine
from stabwatch.alerts.rule import SEVERITIES, Alert, Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, median
from stabwatch.alerts.templates import group_names
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.runlog import RecordBatch, RunLog
from stabwatch.signals import CATALOGUE

AT_ONCE = (
    "DoubleSoftmax", "ReluOnLogits", "LossBroadcast", "TargetOutOfRange", "TargetsIgnored", "InitialLossTooHigh",
    "InitialOutputsTooLarge", "NotLogProbabilities", "InputsConstant", "OverlapOfLogits",
    "TargetsShiftedTwice", "TargetsNotShifted", "TargetsNotHidden", "CausalMaskMissing", "TargetInInput",
    "PartWithoutGradient", "ParametersNotInOptimizer", "ParametersNotRegistered", "EvalModeInTraining",
    "ClipOnScaledGradients", "GradientsNotUnscaled", "LossTermNotScaled", "ClipAfterStep", "NoNonlinearity",
    "OptimizerStateLost", "ReplicasDiffer", "NonFinite", "UpdateTooLarge", "AttentionEntropyCollapse",
)  # fmt: skip
"""Rules whose first point is enough."""
TWICE = ("GradientsAccumulate", "ZeroGradients", "NoUpdates", "UpdatesLost", "DeadUnits", "SaturatedUnits")
"""Rules that need two: a factor of an adapter that begins at zero has no gradient in the first step."""
LASTING = "_steps"
"""End of the names of gauges that say for how long something has been so."""
LARGE_INPUT = 30.0
"""Root mean square: pixels of 0 to 255 are above it, numbers that were scaled to a deviation of 1 far below."""
SMALL_UPDATE = 1e-7
"""Update over weight: a ten-thousandth of what is usual."""
FAR_BELOW = 0.5
"""Of ln(classes): a first loss below it knows the answer already."""
MOSTLY = 0.95
"""Of the targets; prompts of a dialogue are some tenths of it."""
_GAUGES = {signal.name for signal in (*CATALOGUE, *DERIVED)}
_HALF = ("evaluation_mode_ratio", "gradients_kept_ratio")


@dataclass(frozen=True)
class Finding:
    """One thing about the set-up. severity: 'info' for what may be meant so. layers: where, in forward order."""

    name: str
    title: str
    severity: str
    text: str
    layers: tuple[str, ...] = ()
    remedy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preflight:
    """What the first steps of a run show of its set-up.

    steps: how many were recorded. facts: numbers of the first step, in sentences. findings: the gravest first.
    """

    steps: int
    findings: tuple[Finding, ...] = ()
    facts: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there were steps, and nothing above information was found."""
        return self.steps > 0 and all(finding.severity == "info" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        if not self.steps:
            return (
                "stabwatch preflight: no step was recorded. Train one batch (forward, backward, step), then ask again."
            )
        steps = f"{self.steps} step" + ("s" if self.steps > 1 else "")
        lines = [f"stabwatch preflight, from {steps}:"]
        for f in self.findings:
            where = f" In {', '.join(group_names(f.layers)[:4])}." if f.layers else ""
            lines += [f"  {f.severity}: {f.title} ({f.name}). {f.text}{where}", *(f"    - {r}" for r in f.remedy)]
        if self.ok:
            lines.append("  Nothing is wrong with what these steps show.")
        return "\n".join([*lines, *(f"  {fact}" for fact in self.facts)])


def preflight(run: Path, rules: Sequence[Rule] = RULES) -> Preflight:
    """Judge the records so far in a run folder, of which a few are enough. Raises RunLogError where there is no run."""
    log = RunLog(run)
    engine = Engine([_hasty(rule) for rule in rules if rule.name in (*AT_ONCE, *TWICE)])
    first: dict[str, float] = {}
    steps, ratios = 0, np.empty(0)
    for item in timeline(log, log.poll_events()):
        lead(engine, item)
        if isinstance(item, RecordBatch):
            steps += len(item)
            _note_first(first, item)
            ratios = _column(item, "update_to_weight_ratio", ratios)
    by_rule: dict[str, list[Alert]] = {}
    for alert in engine.active:
        by_rule.setdefault(alert.rule, []).append(alert)
    findings = [_finding(engine, alerts) for name, alerts in by_rule.items() if name in engine.rules]
    findings += _of_numbers(first, ratios) if steps else []
    findings.sort(key=lambda f: SEVERITIES.index(f.severity) if f.severity in SEVERITIES else len(SEVERITIES))
    return Preflight(steps, tuple(findings), tuple(_facts(first, ratios)))


def _hasty(rule: Rule) -> Rule:
    """The rule without the time that it waits."""
    points = 2 if rule.name in TWICE else 1
    hasty = (
        Threshold(
            severity=t.severity, when=tuple(map(_now, t.when)), for_points=min(t.for_points, points), summary=t.summary
        )
        for t in rule.thresholds
    )
    return replace(rule, thresholds=tuple(hasty), abnormal=tuple(map(_now, rule.abnormal)), warm_up=0)


def _now(condition: Condition) -> Condition:
    """Instead of for how long something has been so: is it so? As it is where no gauge says that."""
    gauge = condition.gauge.removesuffix(LASTING)
    if gauge == condition.gauge or gauge not in _GAUGES:
        return condition
    return Condition(gauge, above=0.5 if gauge in _HALF else 0.0)


def _finding(engine: Engine, alerts: Sequence[Alert]) -> Finding:
    rule, first = engine.rules[alerts[0].rule], alerts[0]
    layers = tuple(dict.fromkeys(a.layer for a in alerts if a.layer))
    text = rule.summary if "nan" in first.description else first.description
    return Finding(rule.name, rule.title, first.severity, text, layers, rule.remedy)


def _of_numbers(first: dict[str, float], ratios: Array) -> list[Finding]:
    """What numbers of the first steps say for which a running watch has no rule of its own."""
    out = []
    size = first.get("input_rms", 0.0)
    if size >= LARGE_INPUT:
        text = f"The root mean square of the model's input is {size:.4g}; usual initialisations expect about 1."
        remedy = ("Scale the inputs: pixels by 255, columns of a table to mean 0 and deviation 1.",)
        out.append(Finding("InputsNotScaled", "The inputs are not scaled", "warning", text, (), remedy))
    loss, classes = first.get("token_loss", math.nan), first.get("target_classes", math.nan)
    if classes >= 2 and loss < FAR_BELOW * math.log(classes):
        text = f"The first loss is {loss:.3g}, and a guess among {classes:.0f} classes has {math.log(classes):.3g}."
        remedy = ("A model that was trained before may know; if it was not, the answer is in the input.",)
        out.append(Finding("FirstLossLow", "The model knows the answers already", "info", text, (), remedy))
    if first.get("target_ignored_ratio", 0.0) > MOSTLY:
        text = f"{first['target_ignored_ratio']:.0%} of the targets of the first step are ignored."
        remedy = ("Is the label that is ignored (-100, a padding) given to more than it should be?",)
        out.append(Finding("TargetsMostlyIgnored", "Most targets are ignored", "warning", text, (), remedy))
    if len(ratios) and (ratio := median(ratios)) < SMALL_UPDATE:
        text = f"A step changes the weights by {ratio:.2g} in the median layer; about 1e-3 is usual."
        remedy = ("Is the learning rate meant to be so small, as at the beginning of a warm-up?",)
        out.append(Finding("UpdatesSmall", "Updates are far smaller than usual", "info", text, (), remedy))
    return out


def _facts(first: dict[str, float], ratios: Array) -> list[str]:
    out = []
    loss, tokens, classes = (first.get(name, math.nan) for name in ("loss", "token_loss", "target_classes"))
    if math.isfinite(loss):
        out.append(f"First loss: {loss:.4g}.")
    if classes >= 2 and math.isfinite(tokens):
        guess = math.log(classes)
        out.append(f"First cross-entropy: {tokens:.4g}; a uniform guess among {classes:.0f} classes has {guess:.4g}.")
    if len(ratios):
        rate = first.get("learning_rate", math.nan)
        by = f" at a learning rate of {rate:.3g}" if math.isfinite(rate) else ""
        out.append(f"A step changes the weights by {median(ratios):.2g} in the median layer{by}; about 1e-3 is usual.")
    return out


def _note_first(first: dict[str, float], batch: RecordBatch) -> None:
    """Keep the first finite number of each series of the run."""
    for i, key in enumerate(batch.layout.keys):
        if not key.layer and key.signal not in first:
            finite = batch.values[np.isfinite(batch.values[:, i]), i]
            if len(finite):
                first[key.signal] = float(finite[0])


def _column(batch: RecordBatch, signal: str, before: Array) -> Array:
    """The numbers of all layers in the last record that has any."""
    columns = [i for i, key in enumerate(batch.layout.keys) if key.signal == signal]
    for row in batch.values[::-1, columns] if columns else ():
        if np.isfinite(row).any():
            return np.asarray(row[np.isfinite(row)], dtype=np.float64)
    return before
