"""The rules for Prometheus: groups of alerting and recording rules, as data; `scripts/generate` writes the file.

An alert reads the verdict of the agent's engine (`stabwatch_alerts_firing`), which counts measured points: a hold of
three points or a median of sixteen cannot be told from samples every fifteen seconds. So both evaluators agree by
construction. What fired and was over between two scrapes is seen by its counter (`stabwatch_rule_violations_total`).
The recording rules hold the conditions themselves on the exported gauges, for panels and for thresholds of one's own.
"""

from __future__ import annotations

from typing import Any

from stabwatch.alerts.catalogue import RULES
from stabwatch.alerts.rule import RUNBOOKS, SEVERITIES, Rule, Severity

BETWEEN = "2m"
"""How far back a transition that no scrape saw is looked for: several scrape intervals."""
KEEP = {"critical": "5m", "warning": "5m", "info": "1m"}

_HEALTH: tuple[tuple[str, str, str, str, str, str], ...] = (
    (
        "AgentDown", "warning", 'up{job="stabwatch"} == 0', "2m",
        "An agent does not answer.",
        "Nothing is known of the runs at {{ $labels.instance }}; start it again: stabwatch agent RUN.",
    ),
    (
        "ProbeErrors", "warning", "increase(stabwatch_probe_errors_total[10m]) > 0", "0s",
        "A probe failed inside the training process.",
        "It was caught, training goes on; after three failures the probe is off. stabwatch doctor RUN names it.",
    ),
    (
        "RecordsDropped", "warning", "increase(stabwatch_records_dropped_total[10m]) > 0", "0s",
        "Records could not be written to the run log.",
        "Is the disk full, or the file system gone? What was dropped cannot be had again.",
    ),
    (
        "AgentErrors", "warning",
        "increase(stabwatch_agent_errors_total[10m]) > 0 or increase(stabwatch_collect_errors_total[10m]) > 0", "0s",
        "An agent stumbled while it followed a run.",
        "Some metrics may be missing; the agent's own output holds the traceback.",
    ),
    (
        "OverheadOverBudget", "info", "stabwatch_overhead_ratio > 0.05", "10m",
        "stabwatch takes more than 5 % of the run's time.",
        "The default budget is 1 %. every_step=True, or steps of a few milliseconds? See the runbook.",
    ),
    (
        "CoverageIncomplete", "info", "stabwatch_taps_missing > 0", "10m",
        "Taps that should have shown something have not.",
        "stabwatch doctor RUN says which, and why.",
    ),
    (
        "SeriesDropped", "info", "stabwatch_series_dropped_total > 0", "10m",
        "Series are not exported because the agent's cap is reached.",
        "All of them are in the run log; alerts are not cut. cardinality='block' exports blocks in place of layers.",
    ),
)  # fmt: skip
"""Name, severity, expression, for, summary, description: the health of stabwatch itself."""


def groups(rules: tuple[Rule, ...] = RULES) -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    return {
        "groups": [
            {"name": "stabwatch-records", "rules": _records(rules)},
            {"name": "stabwatch", "rules": [alert for rule in rules for alert in _alerts(rule)]},
            {"name": "stabwatch-health", "rules": [_health(*entry) for entry in _HEALTH]},
        ]
    }


def severities(rule: Rule) -> tuple[Severity, ...]:
    """The severities that a rule can reach, the gravest first."""
    found = {level.severity for level in rule.thresholds} or {"critical", "warning"}
    return tuple(s for s in SEVERITIES if s in found)


def _alerts(rule: Rule) -> list[dict[str, Any]]:
    reach = severities(rule)
    loud = [s for s in reach if s != "info"]
    return [_alert(rule, severity, missed=bool(loud) and severity == loud[-1]) for severity in reach]


def _alert(rule: Rule, severity: Severity, missed: bool) -> dict[str, Any]:
    """missed: it also speaks for what fired and was over between two scrapes."""
    verdict = f'max by (run, layer) (stabwatch_alerts_firing{{rule="{rule.name}", severity="{severity}"}}) == 1'
    counter = f'stabwatch_rule_violations_total{{rule="{rule.name}"}}'
    over = (
        f"max by (run, layer) (increase({counter}[{BETWEEN}])) > 0\n"
        f"or max by (run, layer) ({counter} unless {counter} offset {BETWEEN}) > 0"
    )
    return {
        "alert": rule.alert,
        "expr": f"{verdict}\nor {over}" if missed else verdict,
        "keep_firing_for": KEEP[severity],
        "labels": {"severity": severity},
        "annotations": annotations_of(
            rule, severity, "{{ $labels.run }}", "{{ with $labels.layer }}Layer {{ . }}. {{ end }}"
        ),
    }


def annotations_of(rule: Rule, severity: str, run: str, place: str) -> dict[str, str]:
    """The annotations of an alert. place: 'Layer x. ', or nothing."""
    summary = next((level.summary for level in rule.thresholds if level.severity == severity and level.summary), "")
    return {
        "summary": f"{summary or rule.summary} Run {run}",
        "description": place + " ".join(rule.remedy),
        "runbook_url": rule.runbook_url,
        "dashboard_url": f"/d/stabwatch-run?var-run={run}",
    }


def _health(name: str, severity: str, expr: str, wait: str, summary: str, description: str) -> dict[str, Any]:
    found: dict[str, Any] = {"alert": f"Stabwatch{name}", "expr": expr}
    if wait != "0s":
        found["for"] = wait
    return found | {
        "labels": {"severity": severity},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{RUNBOOKS}/Health.md#stabwatch{name.lower()}",
        },
    }


def _records(rules: tuple[Rule, ...]) -> list[dict[str, Any]]:
    """Alerts by run and severity; and of each rule, the gauges of its gravest level where its conditions hold."""
    out = [
        {
            "record": "run_severity:stabwatch_alerts_firing:sum",
            "expr": "sum by (run, severity) (stabwatch_alerts_firing)",
        }
    ]
    for rule in rules:
        if rule.thresholds and rule.family != "nonfinite":
            out.append({"record": f"run_layer:stabwatch_{_snake(rule.name)}:outside", "expr": _condition(rule)})
    return out


def _condition(rule: Rule) -> str:
    parts = []
    for condition in rule.abnormal:
        gauge = f"max by (run, layer) (stabwatch_{condition.gauge})"
        parts += [f"{gauge} > {condition.above:g}"] if condition.above is not None else []
        parts += [f"{gauge} < {condition.below:g}"] if condition.below is not None else []
    return "\nand on (run, layer) ".join(parts)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
