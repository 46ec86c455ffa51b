"""One analysis for every log: rules as in a live run, detectors in hindsight, one list of incidents, one diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import time
from typing import Any

from stabwatch.alerts import RULES, Alert, Diagnosis, Engine, Rule, diagnose
from stabwatch.alerts.held_up import failed_in, held_up_in
from stabwatch.alerts.incidents import Incident, rule_incidents
from stabwatch.alerts.roles import REWARD, spelled
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.analysis.detectors.segments import segments
from stabwatch.analysis.detectors.wording import FEW, number_of
from stabwatch.analysis.hindsight import in_hindsight
from stabwatch.analysis.limitations import limitations, watched_limitations
from stabwatch.analysis.readers.log import Column, LogRun
from stabwatch.analysis.readers.names import is_eval
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.analysis.run_curves import RunCurves
from stabwatch.analysis.sources import open_source
from stabwatch.analysis.standstill import standstill
from stabwatch.analysis.summaries import SeriesSummary, Summaries
from stabwatch.analysis.units import WORDS, diagnosis_in_units, in_units
from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, Run, plain
from stabwatch.runlog.attempts import Attempt, attempts
from stabwatch.runlog.attempts import kept as without_superseded
from stabwatch.runlog.downsample import Downsampled
from stabwatch.runlog.process import end_of, killed_end
from stabwatch.runlog.schema import GOOD_ENDS
from stabwatch.runlog.source import Source

SCHEMA_VERSION = 2
"""Schema version of `analyze --json`: docs/json.md and docs/analysis.schema.json."""
RUN_FOLDER = "stabwatch run folder"


@dataclass(frozen=True)
class Analysis:
    """The analysis of one run: a run folder or another trainer's log.

    form: format of the log. notes: what its reader recognised, guessed and left out; of a run folder, how its attempts
    ended. records: number of training records, without those that a later attempt superseded. duration: seconds from
    the first record to the last, NaN without times. ended: reason of the end event,
    None if there is none. incidents: of rules and detectors, by first step. alerts: all transitions of the rules, as in
    a live run. limitations: what the log cannot show, in words. coverage: data of the last coverage event. errors: of
    probes. window: steps per record of `run`. run: the records, merged if there are many, for charts. curves: the input
    of the detectors.
    """

    name: str
    form: str
    notes: tuple[str, ...]
    records: int
    first_step: int | None
    last_step: int | None
    duration: float
    ended: str | None
    incidents: tuple[Incident, ...]
    diagnosis: Diagnosis
    alerts: tuple[Alert, ...]
    series: tuple[SeriesSummary, ...]
    limitations: tuple[str, ...]
    coverage: dict[str, Any]
    errors: tuple[dict[str, Any], ...]
    window: int
    run: Run = field(repr=False, compare=False)
    curves: LogRun = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Path of the log."""
        return self.run.path

    @property
    def is_run_folder(self) -> bool:
        """Whether stabwatch wrote the log, which then has signals by layer."""
        return self.form == RUN_FOLDER

    @property
    def unit(self) -> str:
        """What its records are counted in: 'step', 'epoch' or 'record'."""
        return WORDS[self.curves.step_unit]

    @property
    def calm(self) -> bool:
        """Whether no incident is above information, and a watched run has records."""
        return not self.silent and not any(incident.is_problem for incident in self.incidents)

    @property
    def silent(self) -> bool:
        """Whether stabwatch has recorded nothing of the run."""
        return self.is_run_folder and not self.records

    @property
    def exit_code(self) -> int:
        """0: calm; 1: an incident above information, or a watched run without records."""
        return int(not self.calm)

    @property
    def loss(self) -> Column | None:
        """Name of the column that was judged as the loss."""
        return self.curves.of("loss") or self.curves.of("eval_loss")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as docs/json.md describes it; numbers that are not finite are None."""
        run, curves = self.run, self.curves
        return plain(
            {
                "name": self.name,
                "path": str(self.path),
                "format": self.form,
                "notes": list(self.notes),
                "records": self.records,
                "step_unit": curves.step_unit,
                "first_step": self.first_step,
                "last_step": self.last_step,
                "duration_seconds": self.duration,
                "ended": self.ended,
                "calm": self.calm,
                "diagnosis": self.diagnosis.to_dict(),
                "incidents": [incident.to_dict() for incident in self.incidents],
                "alerts": [alert.to_dict() for alert in self.alerts],
                "series": [asdict(s) for s in self.series],
                "loss": None if self.loss is None else self.loss.name,
                "columns": [{"name": c.name, "role": c.role, "points": len(c)} for c in curves.columns],
                "limitations": list(self.limitations),
                "coverage": self.coverage,
                "errors": list(self.errors),
                "damaged_records": run.damaged_records,
                "bad_event_lines": run.bad_event_lines,
                "torn_bytes": run.torn_bytes,
                "meta": asdict(run.meta) if self.is_run_folder else None,
            }
        )


def document(analyses: Iterable[Analysis], unreadable: Sequence[tuple[Path, str]] = ()) -> dict[str, Any]:
    """The JSON document of analyses, and of unreadable paths with the reason."""
    runs = list(analyses)
    return {
        "schema_version": SCHEMA_VERSION,
        "calm": all(run.calm for run in runs),
        "runs": [run.to_dict() for run in runs],
        "unreadable": [{"path": str(path), "error": error} for path, error in unreadable],
    }


def analyze(path: str | Path) -> Analysis:
    """Analyse a run folder, the newest one in a folder, or a log with one run. Raises RunLogError and LogError."""
    found = open_source(Path(path))
    if len(found) != 1:
        raise RunLogError(f"{path} has {len(found)} runs; open_source returns each.")
    return analyze_source(found[0])


def analyze_source(
    log: Source, rules: Sequence[Rule] = RULES, progress: Callable[[Source], None] | None = None
) -> Analysis:
    """Analyse one run; its records are streamed. Raises RunLogError."""
    engine, summaries, kept, curves = Engine(rules), Summaries(), Downsampled(), RunCurves()
    foreign = log if isinstance(log, ForeignLog) else None
    events = tuple(log.poll_events())
    held = held_up_in(log.path, events, time(), "analyze") if foreign is None else None
    events = (*events, held) if held is not None else events
    found = attempts(log.path, events) if foreign is None else ()
    for item in timeline(log, events):
        lead(engine, item)
        if isinstance(item, Event):
            continue
        current = without_superseded(item, found)
        summaries.add(current)
        kept.add(current)
        if foreign is None:
            curves.add(item)
        if progress is not None:
            progress(log)
    watched = foreign is None
    if watched and (gone := killed_end(log.meta, events, summaries.last_step, summaries.last_time)) is not None:
        events = (*events, gone)
        lead(engine, gone)
    view = (
        foreign.run
        if foreign is not None
        else replace(curves.run(log.meta.run), comparable=engine.comparable, searched=engine.memory.searches)
    )
    steps = view.steps
    hindsight = in_hindsight(
        view, rule_incidents(engine.history), watched, engine.data_changes, engine.fresh_starts, engine.model_changes
    )
    incidents = in_units(hindsight.incidents, view.step_unit)
    end, coverage = end_of(events), _last(events, "coverage")
    diagnosis = diagnose(engine, incidents, hindsight.spacing, watched=watched)
    diagnosis = diagnosis_in_units(diagnosis, view.step_unit)
    if foreign is not None and not diagnosis.causes:
        diagnosis = Diagnosis(calm_verdict(view))
    if watched and not diagnosis.causes:
        diagnosis = Diagnosis(
            diagnosis.verdict
            + standstill(view, engine.memory.context, bool(engine.data_changes or engine.fresh_starts))
        )
    if watched and not summaries.records:
        never = tuple(cause for cause in diagnosis.causes if cause.name == "OptimizerNeverSteps")
        diagnosis = Diagnosis(silent_verdict(coverage, end), never)
    run = kept.run(log, events)
    return Analysis(
        name=log.meta.run,
        form=RUN_FOLDER if foreign is None else foreign.form,
        notes=_attempts_told(log.path, found) if foreign is None else foreign.notes,
        records=summaries.records if watched else len(steps),
        first_step=summaries.first_step if watched else int(steps.min()) if len(steps) else None,
        last_step=summaries.last_step if watched else int(steps.max()) if len(steps) else None,
        duration=summaries.duration,
        ended=str(end.data.get("reason", "unknown")) if end else None,
        incidents=incidents,
        diagnosis=diagnosis,
        alerts=engine.history,
        series=summaries.of_all(),
        limitations=(
            *(f"A part of the log is left out: {text}" for text in run.unreadable),
            *_limitations(view, curves, watched),
        ),
        coverage=coverage.data if coverage else {},
        errors=tuple({"time": e.time, "step": e.step, **e.data} for e in events if e.kind == "error"),
        window=kept.window,
        run=run,
        curves=view,
    )


def _attempts_told(run: Path, found: Sequence[Attempt]) -> tuple[str, ...]:
    """How each attempt but the last ended, on which rank it failed, and where the next one went on."""
    told = []
    for before, after in pairwise(found):
        where = f"ended at step {before.last:,}" if before.last is not None else "ended without a record"
        failed = "" if before.ended in GOOD_ENDS else failed_in(run, before.number)
        why = failed or before.ended or "no end was recorded, the process was killed or lost"
        if after.first is None:
            then = "has no record yet"
        else:
            rewound = before.last is not None and after.first <= before.last
            then = f"{'went back to' if rewound else 'went on from'} step {after.first:,}"
        told.append(f"Attempt {before.number} {where}: {why}; attempt {after.number} {then}.")
    return tuple(told)


UNRECORDED = {
    "killed": "Nothing was recorded: the process was gone before a step of the training had reached the log.",
    "replaced": "Nothing was recorded: another watch took this one's place before a step of the training had ended.",
}
"""Verdicts of runs without records, by how they ended."""


def silent_verdict(coverage: Event | None, end: Event | None) -> str:
    """The verdict of a run folder without records, with the reason that the last coverage event gives.

    end: of the run, None while it goes on.
    """
    missing = coverage.data.get("missing") if coverage is not None else None
    entries = missing if isinstance(missing, list) else []
    why = next((str(e.get("reason")) for e in entries if isinstance(e, dict) and e.get("tap") == "clock"), "")
    if not why and end is not None:
        ended = "Nothing was recorded: the run ended before a step of the training had."
        return UNRECORDED.get(str(end.data.get("reason")), ended)
    if not why:
        return "Nothing has been recorded yet: no step of the training has ended since `attach`."
    return f"{why[:1].upper()}{why[1:]}."


def calm_verdict(run: LogRun) -> str:
    """The verdict of a log without problems."""
    only = max((c for c in run.columns if c.role == "eval_loss"), key=len, default=None)
    if not len(run.steps) and only is not None and len(only):
        return f"This log has only evaluations: '{only.name}' shows no problem, in {number_of(len(only))}."
    if not len(run.steps):
        told = max((c for c in run.columns if is_eval(c.name)), key=len, default=None)
        if told is None or not len(told):
            return "No training record was found."
        said = f"('{told.name}', {number_of(len(told))})"
        return f"This log has only evaluations {said}, and no loss: it is not known how training went."
    unit = WORDS[run.step_unit]
    extent = f"in {number_of(len(run.steps))}, {unit}s {run.steps.min():,} to {run.steps.max():,}"
    few = " That is too few to show a slow problem." if len(run.steps) < FEW else ""
    if not any(len(column) for column in run.columns if column.role in ("loss", "eval_loss")):
        reward = next((c.name for c in run.columns if len(c) and REWARD.search(spelled(c.name))), None)
        if reward is not None:
            return f"This log has no loss, and its reward ('{reward}') shows no problem, {extent}.{few}"
        return f"This log has no loss, so it is not known how training went, {extent}."
    return f"This log shows no problem, {extent}.{few}"


def _limitations(view: LogRun, curves: RunCurves, watched: bool) -> tuple[str, ...]:
    found = list(segments(view, watched))
    return tuple(watched_limitations(view, found, curves.note) if watched else limitations(view, found))


def _last(events: tuple[Event, ...], kind: str) -> Event | None:
    return next((e for e in reversed(events) if e.kind == kind), None)
