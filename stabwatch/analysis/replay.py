"""Rules over old run logs, exactly as live: what they would have said, beside what the agent said then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stabwatch.alerts import RULES, Alert, Engine, Rule
from stabwatch.alerts.incidents import AlertSpan, alert_spans, rank
from stabwatch.alerts.rule import SEVERITIES, Severity
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.runlog import Event
from stabwatch.runlog.source import Source

SCHEMA_VERSION = 1
Said = tuple[str, str, str, str, int]
"""rule, signal, layer, state, step: what makes two alerts the same one."""


@dataclass(frozen=True)
class Incident:
    """One rule in one run, from its first alert until no layer fires any more.

    layers: in the order in which they fired. onset: first step outside the normal range. until: None while it fires.
    """

    run: str
    rule: str
    severity: str
    layers: tuple[str, ...]
    onset: int
    step: int
    until: int | None
    description: str


@dataclass(frozen=True)
class Replay:
    """What some rules say of one run.

    alerts: every transition. recorded: how many the agent wrote then. new, gone: alerts (rule, signal, layer, state,
    step) that only the replay has, and that only the agent wrote.
    """

    path: Path
    run: str
    records: int
    alerts: tuple[Alert, ...]
    recorded: int
    new: tuple[Said, ...]
    gone: tuple[Said, ...]

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The alerts of all layers, folded; in the order in which they began."""
        return tuple(_fold(self.run, alert_spans(self.alerts)))


@dataclass(frozen=True)
class RuleTally:
    """What one rule did in all runs: incidents, the runs that have one, and how many there are by severity."""

    rule: str
    runs: int
    severities: dict[Severity, int]
    incidents: tuple[Incident, ...]


@dataclass(frozen=True)
class Replays:
    """Some rules over some runs."""

    runs: tuple[Replay, ...]
    rules: tuple[str, ...]

    @property
    def tallies(self) -> tuple[RuleTally, ...]:
        """One for each rule, in the order of the rules; of a rule that never fired too."""
        found = [run.incidents for run in self.runs]
        return tuple(_tally(rule, [[i for i in mine if i.rule == rule] for mine in found]) for rule in self.rules)

    @property
    def exit_code(self) -> int:
        """0 calm, 1 something fired that is more than information."""
        return int(any(t.severities.get(s) for t in self.tallies for s in ("critical", "warning")))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": SCHEMA_VERSION,
            "runs": [
                {
                    "run": r.run,
                    "path": str(r.path),
                    "records": r.records,
                    "incidents": len(r.incidents),
                    "recorded_alerts": r.recorded,
                    "new": [list(said) for said in r.new],
                    "gone": [list(said) for said in r.gone],
                }
                for r in self.runs
            ],
            "rules": [asdict(tally) for tally in self.tallies],
        }


def replay(
    logs: Iterable[Source], rules: Sequence[Rule] = RULES, progress: Callable[[Source], None] | None = None
) -> Replays:
    """Replay runs. progress: called with the log now and then. Raises RunLogError."""
    return Replays(tuple(replay_run(log, rules, progress) for log in logs), tuple(r.name for r in rules))


def replay_run(log: Source, rules: Sequence[Rule] = RULES, progress: Callable[[Source], None] | None = None) -> Replay:
    """Replay one run; it is streamed. Raises RunLogError."""
    said = log.poll_events()
    engine, records = Engine(rules), 0
    for item in timeline(log, said):
        lead(engine, item)
        records += 0 if isinstance(item, Event) else len(item)
        if progress is not None:
            progress(log)
    now = {_said(a.to_dict()) for a in engine.history}
    then = {_said(e.data | {"step": e.step}) for e in said if e.kind == "alert"}
    known = {r.name for r in rules}
    return Replay(
        log.path,
        log.meta.run,
        records,
        engine.history,
        len(then),
        tuple(sorted(now - then, key=_by_step)),
        tuple(sorted((said for said in then - now if said[0] in known), key=_by_step)),
    )


def _said(alert: dict[str, Any]) -> Said:
    rule, signal, layer, state = (str(alert.get(name, "")) for name in ("rule", "signal", "layer", "state"))
    step = alert.get("step")
    return rule, signal, layer, state, step if isinstance(step, int) else -1


def _by_step(said: Said) -> tuple[int, Said]:
    return said[-1], said


def _tally(rule: str, by_run: list[list[Incident]]) -> RuleTally:
    incidents = tuple(i for mine in by_run for i in mine)
    counts = {severity: sum(i.severity == severity for i in incidents) for severity in SEVERITIES}
    return RuleTally(rule, sum(map(bool, by_run)), counts, incidents)


def _fold(run: str, found: list[AlertSpan]) -> list[Incident]:
    out: list[tuple[int, Incident]] = []
    for rule in dict.fromkeys(s.rule for s in found):
        group: list[AlertSpan] = []
        for stretch in sorted((s for s in found if s.rule == rule), key=_fired):
            if group and not any(s.until is None or s.until >= _fired(stretch) for s in group):
                out.append((_fired(group[0]), _incident(run, group)))
                group = []
            group.append(stretch)
        out.append((_fired(group[0]), _incident(run, group)))
    return [incident for _, incident in sorted(out, key=lambda pair: pair[0])]


def _fired(stretch: AlertSpan) -> int:
    return min(stretch.fired.values())


def _incident(run: str, group: list[AlertSpan]) -> Incident:
    worst = min(group, key=lambda s: rank(s.severity))
    ends = [s.until for s in group if s.until is not None]
    return Incident(
        run,
        worst.rule,
        worst.severity,
        tuple(dict.fromkeys(s.layer for s in group)),
        min(s.onset for s in group),
        _fired(group[0]),
        max(ends) if len(ends) == len(group) else None,
        worst.worst.description,
    )
