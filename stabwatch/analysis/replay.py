"""Replay of rules over old run logs, exactly as live: their alerts now, and those that the agent wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabwatch.alerts import RULES, Alert, Rule
from stabwatch.alerts.incidents import Incident, rule_incidents
from stabwatch.alerts.rule import SEVERITIES, Severity
from stabwatch.analysis.analyze import analyze_source
from stabwatch.analysis.sources import open_sources
from stabwatch.runlog import plain
from stabwatch.runlog.source import Source

SCHEMA_VERSION = 2
AlertKey = tuple[str, str, str, str, int]
"""rule, signal, layer, state, step: alerts with equal keys are the same alert."""


@dataclass(frozen=True)
class Replay:
    """The result of rules on one run, as live, and the additional incidents of the whole run.

    path: of the log. run: its name. records: number of training records. alerts: every transition. incidents: of the
    rules alone, as live. in_hindsight: those of the whole run. recorded: number of alerts that the agent wrote. new,
    gone: alerts (rule, signal, layer, state, step) that only the replay has, and alerts that only the agent wrote.
    """

    path: Path
    run: str
    records: int
    alerts: tuple[Alert, ...]
    incidents: tuple[Incident, ...]
    in_hindsight: tuple[Incident, ...]
    recorded: int
    new: tuple[AlertKey, ...]
    gone: tuple[AlertKey, ...]

    @property
    def only_in_hindsight(self) -> tuple[Incident, ...]:
        """Problems that a detector finds over the whole run and no rule found live."""
        return tuple(i for i in self.in_hindsight if i.is_problem and "rule" not in i.found_by)

    @property
    def withdrawn(self) -> tuple[Incident, ...]:
        """Problems of rules that the whole run turns into information, each with the reason."""
        loud = [a for i in self.incidents if i.is_problem for a in i.alerts]
        return tuple(i for i in self.in_hindsight if not i.is_problem and any(a in loud for a in i.alerts))


@dataclass(frozen=True)
class RuleTally:
    """One rule in all runs: its incidents with the name of the run, and their number by severity."""

    rule: str
    runs: int
    severities: dict[Severity, int]
    incidents: tuple[tuple[str, Incident], ...]


@dataclass(frozen=True)
class Replays:
    """The result of rules on several runs."""

    runs: tuple[Replay, ...]
    rules: tuple[str, ...]

    @property
    def tallies(self) -> tuple[RuleTally, ...]:
        """The tally of each rule, in the order of the rules, including rules that never fired."""
        return tuple(_tally(rule, self.runs) for rule in self.rules)

    @property
    def exit_code(self) -> int:
        """0: calm; 1: an alert above information fired."""
        return int(any(t.severities.get(s) for t in self.tallies for s in ("critical", "warning")))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as docs/json.md describes it."""
        return plain(
            {
                "schema_version": SCHEMA_VERSION,
                "calm": self.exit_code == 0,
                "runs": [_run_data(run) for run in self.runs],
                "rules": [
                    {
                        "rule": tally.rule,
                        "runs": tally.runs,
                        "severities": tally.severities,
                        "incidents": [{"run": run, **incident.to_dict()} for run, incident in tally.incidents],
                    }
                    for tally in self.tallies
                ],
            }
        )


def _run_data(run: Replay) -> dict[str, Any]:
    return {
        "run": run.run,
        "path": str(run.path),
        "records": run.records,
        "incidents": len(run.incidents),
        "recorded_alerts": run.recorded,
        "new": [list(key) for key in run.new],
        "gone": [list(key) for key in run.gone],
        "only_in_hindsight": [incident.to_dict() for incident in run.only_in_hindsight],
        "withdrawn_in_hindsight": [incident.to_dict() for incident in run.withdrawn],
    }


def replay(
    logs: Iterable[Source], rules: Sequence[Rule] = RULES, progress: Callable[[Source], None] | None = None
) -> Replays:
    """Replay runs. progress: called with the log at intervals. Raises RunLogError."""
    return Replays(tuple(replay_run(log, rules, progress) for log in logs), tuple(r.name for r in rules))


def replay_run(log: Source, rules: Sequence[Rule] = RULES, progress: Callable[[Source], None] | None = None) -> Replay:
    """Replay one run; it is streamed. Raises RunLogError."""
    analysis = analyze_source(log, rules, progress)
    now = {_key(a.to_dict()) for a in analysis.alerts}
    then = {_key(e.data | {"step": e.step}) for e in analysis.run.events if e.kind == "alert"}
    known = {r.name for r in rules}
    return Replay(
        analysis.path,
        analysis.name,
        analysis.records,
        analysis.alerts,
        tuple(rule_incidents(analysis.alerts)),
        analysis.incidents,
        len(then),
        tuple(sorted(now - then, key=_by_step)),
        tuple(sorted((key for key in then - now if key[0] in known), key=_by_step)),
    )


def replays_at(place: str, rules: Sequence[Rule] = RULES) -> tuple[Replay, ...]:
    """Replay what is at a path or an address: what a process of a pool, or a worker of Ray, does with one run.

    Raises RunLogError and LogError.
    """
    return tuple(replay_run(log, rules) for log in open_sources([Path(place)]))


def _key(alert: dict[str, Any]) -> AlertKey:
    rule, signal, layer, state = (str(alert.get(name, "")) for name in ("rule", "signal", "layer", "state"))
    step = alert.get("step")
    return rule, signal, layer, state, step if isinstance(step, int) else -1


def _by_step(key: AlertKey) -> tuple[int, AlertKey]:
    return key[-1], key


def _tally(rule: str, runs: Sequence[Replay]) -> RuleTally:
    by_run = [[i for i in run.incidents if i.condition == rule] for run in runs]
    incidents = tuple((run.run, i) for run, mine in zip(runs, by_run, strict=True) for i in mine)
    counts = {severity: sum(i.severity == severity for _, i in incidents) for severity in SEVERITIES}
    return RuleTally(rule, sum(map(bool, by_run)), counts, incidents)
