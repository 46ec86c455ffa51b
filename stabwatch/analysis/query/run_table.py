"""A table of runs: one row for each run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stabwatch.alerts.incidents import rank, worst_of
from stabwatch.analysis.analyze import analyze_source
from stabwatch.analysis.query.columns import Columns
from stabwatch.analysis.query.frames import frame
from stabwatch.errors import RunLogError
from stabwatch.exporters.declared import adopt
from stabwatch.runlog import Event, RunLog, find_runs
from stabwatch.runlog.attempts import attempts, kept
from stabwatch.runlog.process import state_of
from stabwatch.runlog.schema import META, segments_of

UNREADABLE = "unreadable"
"""State of a run whose log cannot be read; `verdict` then says why."""
_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("run", pa.string()), ("name", pa.string()), ("tags", pa.list_(pa.string())), ("notes", pa.string()),
        ("state", pa.string()), ("created", _TIME), ("seconds", pa.float64()),
        ("records", pa.int64()), ("first_step", pa.int64()), ("last_step", pa.int64()), ("last_loss", pa.float64()),
        ("alerts", pa.list_(pa.string())), ("severity", pa.string()), ("cause", pa.string()), ("verdict", pa.string()),
        ("attempts", pa.int64()), ("model", pa.string()), ("parameters", pa.int64()), ("world_size", pa.int64()),
        ("rank", pa.int64()), ("host", pa.string()), ("path", pa.string()),
    ]
)  # fmt: skip


@dataclass
class RunRow:
    """One run; None is what is not known. See `runs` for the columns."""

    run: str
    path: str
    name: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    state: str = UNREADABLE
    created: float | None = None
    seconds: float | None = None
    records: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    last_loss: float | None = None
    alerts: list[str] | None = None
    severity: str | None = None
    cause: str | None = None
    verdict: str | None = None
    attempts: int | None = None
    model: str | None = None
    parameters: int | None = None
    world_size: int | None = None
    rank: int | None = None
    host: str | None = None


def runs(*roots: str | Path, verdict: bool = True, arrow: bool = False) -> Any:
    """All run folders at some paths or directly inside them, one row each, the oldest first.

    Args:
        roots: run folders or folders of them; `stabwatch-runs` if left out.
        verdict: analyse each run, as `stabwatch analyze` does. This takes most of the time; without it `severity`,
            `cause` and `verdict` are null.
        arrow: return an Arrow table in any case, not a pandas DataFrame.

    The columns: `run` (name of the folder), `name`, `tags` and `notes` (of `attach` and `stabwatch tag`), `state`
    ('running', 'killed', or the reason of its end, such as 'finished' or 'exception'), `created` (UTC), `seconds` (from
    the first record to the last), `records`, `first_step`, `last_step`, `last_loss` (as it was measured last; NaN if it
    was NaN then), `alerts` (severity and rule of each that an agent saw fire, the worst first), `severity` ('critical',
    'warning' or 'calm'), `cause` (the first in the diagnosis), `verdict` (in words), `attempts`, `model`, `parameters`,
    `world_size`, `rank`, `host`, `path`. What is not known is null. A run that cannot be read has the state
    'unreadable', and its `verdict` says why.

    Raises RunLogError if a path is neither a run folder nor a folder of runs.
    """
    rows = [row_of(path, verdict) for path in find_runs(roots or ("stabwatch-runs",))]
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in SCHEMA}
    columns["created"] = [None if at is None else round(1e6 * at) for at in columns["created"]]
    return frame(pa.table(columns, SCHEMA), arrow)


def row_of(path: Path, verdict: bool) -> RunRow:
    """One run. Never raises for a log that is damaged or of another version."""
    row = RunRow(run=path.resolve().name, path=str(path))
    try:
        _fill(row, path)
        if verdict:
            _judge(row, path)
    except (RunLogError, OSError) as error:
        row.state, row.verdict = UNREADABLE, str(error)
    return row


def _fill(row: RunRow, path: Path) -> None:
    log = RunLog(path)
    meta, events = log.meta, log.poll_events()
    adopt(meta.signals)
    row.run, row.created, row.host = meta.run, meta.created, meta.host
    row.name, row.tags, row.notes = meta.name, meta.tags, meta.notes
    row.world_size, row.rank = meta.world_size, meta.rank
    row.model, row.parameters = meta.model.get("name"), meta.model.get("parameters")
    row.state = state_of(meta, events, time.time() - _grew(path))
    row.alerts = _fired(events)
    found = attempts(path, events)
    row.attempts = max(1, len(found))
    first, last, row.records = math.nan, math.nan, 0
    for batch in (kept(batch, found) for batch in log.stream()):
        if not len(batch):
            continue
        first = float(batch.times[0]) if not row.records else first
        last = float(batch.times[-1])
        row.first_step = int(batch.steps[0]) if row.first_step is None else row.first_step
        row.last_step = int(batch.steps[-1])
        row.records += len(batch)
        losses = Columns(batch.layout, "loss", "").points(batch).values
        row.last_loss = float(losses[-1]) if len(losses) else row.last_loss
    row.seconds = last - first if row.records else None


def _fired(events: Iterable[Event]) -> list[str]:
    """Severity and rule of the alerts in the log above information, each rule once, the worst first."""
    worst: dict[str, str] = {}
    for data in (event.data for event in events if event.kind == "alert" and event.data.get("state") == "firing"):
        rule, severity = str(data.get("rule")), str(data.get("severity"))
        worst[rule] = min(severity, worst.get(rule, severity), key=rank)
    return [f"{worst[rule]} {rule}" for rule in sorted(worst, key=lambda r: rank(worst[r])) if worst[rule] != "info"]


def _judge(row: RunRow, path: Path) -> None:
    analysis = analyze_source(RunLog(path))
    problems = [incident for incident in analysis.incidents if incident.is_problem]
    row.severity = worst_of(problems) if problems else "calm" if analysis.calm else None
    row.cause = analysis.diagnosis.causes[0].name if analysis.diagnosis.causes else None
    row.verdict = analysis.diagnosis.verdict


def _grew(path: Path) -> float:
    """When the log last grew, in seconds since the epoch."""
    return max(file.stat().st_mtime for file in (path / META, *segments_of(path)))
