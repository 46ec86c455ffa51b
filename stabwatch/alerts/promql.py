"""The rules for Prometheus: groups of alerting and recording rules as data. `scripts/generate` writes the file.

An alert reads the result of the agent's engine (`stabwatch_alerts_firing`), which counts measured points. PromQL could
not count them from samples every fifteen seconds. So Prometheus and the agent always agree. An alert that fired and
resolved between two scrapes is detected by its counter (`stabwatch_rule_violations_total`). The recording rules have
the conditions themselves on the exported gauges, for panels and for custom thresholds.
"""

from __future__ import annotations

from typing import Any

from stabwatch.alerts.catalogue import RULES
from stabwatch.alerts.rule import RUNBOOKS, SEVERITIES, Rule, Severity

BETWEEN = "2m"
"""How far back to look for an alert that fired and resolved between two scrapes: several scrape intervals."""
KEEP = {"critical": "5m", "warning": "5m", "info": "1m"}

_HEALTH: tuple[tuple[str, str, str, str, str, str], ...] = (
    (
        "AgentDown", "warning", 'up{job="stabwatch"} == 0', "2m",
        "A stabwatch agent does not answer.",
        "The state of the run at {{ $labels.instance }} is unknown. Restart the agent: stabwatch agent RUN.",
    ),
    (
        "ProbeErrors", "warning", "increase(stabwatch_probe_errors_total[10m]) > 0", "0s",
        "A probe failed inside the training process.",
        "Training continues. After three failures the probe is switched off. `stabwatch doctor RUN` names it.",
    ),
    (
        "RecordsDropped", "warning", "increase(stabwatch_records_dropped_total[10m]) > 0", "0s",
        "Records could not be written to the run log.",
        "Check the disk and the file system. Dropped records are lost.",
    ),
    (
        "AgentErrors", "warning",
        "increase(stabwatch_agent_errors_total[10m]) > 0 or increase(stabwatch_collect_errors_total[10m]) > 0", "0s",
        "An agent had an internal error.",
        "Some metrics may be missing. The traceback is in agent.log in the run folder.",
    ),
    (
        "OverheadOverBudget", "info", "stabwatch_overhead_ratio > 0.05", "10m",
        "stabwatch takes more than 5 % of the run's time.",
        "The default budget is 1 %. Usual reasons: every_step=True, or steps of a few milliseconds.",
    ),
    (
        "CoverageIncomplete", "info", "stabwatch_taps_missing > 0", "10m",
        "Some signals of the run could not be measured.",
        "`stabwatch doctor RUN` lists them with the reasons.",
    ),
    (
        "SeriesDropped", "info", "stabwatch_series_dropped_total > 0", "10m",
        "Series are not exported, because the agent has reached its limit.",
        "The run log has all of them, and all alerts work. cardinality='block' exports blocks, not layers.",
    ),
)  # fmt: skip
"""Name, severity, expression, for, summary, description of the alerts about stabwatch itself."""


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
    """The severities that a rule can reach, the most severe first."""
    found = {level.severity for level in rule.thresholds} or {"critical", "warning"}
    return tuple(s for s in SEVERITIES if s in found)


def _alerts(rule: Rule) -> list[dict[str, Any]]:
    reach = severities(rule)
    above_info = [s for s in reach if s != "info"]
    return [_alert(rule, severity, missed=severity in above_info[-1:]) for severity in reach]


def _alert(rule: Rule, severity: Severity, missed: bool) -> dict[str, Any]:
    """missed: it also covers alerts that fired and resolved between two scrapes."""
    fires = f'max by (run, layer) (stabwatch_alerts_firing{{rule="{rule.name}", severity="{severity}"}}) == 1'
    counter = f'stabwatch_rule_violations_total{{rule="{rule.name}"}}'
    resolved = (
        f"max by (run, layer) (increase({counter}[{BETWEEN}])) > 0\n"
        f"or max by (run, layer) ({counter} unless {counter} offset {BETWEEN}) > 0"
    )
    return {
        "alert": rule.alert,
        "expr": f"{fires}\nor {resolved}" if missed else fires,
        "keep_firing_for": KEEP[severity],
        "labels": {"severity": severity},
        "annotations": annotations_of(
            rule, severity, "{{ $labels.run }}", "{{ with $labels.layer }}Layer {{ . }}. {{ end }}"
        )
        | _where(rule),
    }


def _where(rule: Rule) -> dict[str, str]:
    """Annotations that Prometheus looks up when the alert fires; empty where nothing is known."""
    info = "{{ with printf `stabwatch_run_info{run=%q}` $labels.run | query }}{{ . | first | label `NAME` }}{{ end }}"
    which = f"{{run=%q, rule=`{rule.name}`, layer=%q}}"
    found = "{{ with printf `stabwatch_alert_KIND` $labels.run $labels.layer | query }}{{ . | first | GET }}{{ end }}"
    found = found.replace("KIND", f"KIND{which}".replace("`", "'"))
    alert = found.replace("KIND", "info")
    return {
        "host": info.replace("NAME", "host"),
        "folder": info.replace("NAME", "folder"),
        "page_url": info.replace("NAME", "page"),
        "value": found.replace("KIND", "value").replace("GET", "value | printf `%.4g`"),
        "onset": alert.replace("GET", "label `onset`"),
        "rank": alert.replace("GET", "label `rank`"),
        "batch": alert.replace("GET", "label `batch`"),
    }


def annotations_of(rule: Rule, severity: str, run: str, place: str) -> dict[str, str]:
    """The annotations of an alert. place: 'Layer x. ', or empty."""
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
    """Number of alerts by run and severity; and for each rule, its gauges while they are abnormal."""
    out = [
        {
            "record": "run_severity:stabwatch_alerts_firing:sum",
            "expr": "sum by (run, severity) (stabwatch_alerts_firing)",
        }
    ]
    for rule in rules:
        if rule.thresholds and rule.family != "nonfinite":
            out.append({"record": f"run_layer:stabwatch_{_snake(rule.name)}:abnormal", "expr": _condition(rule)})
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
