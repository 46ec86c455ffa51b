"""Post-hoc: the rules over a whole run log, exactly as live, and what the log says besides."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabwatch.alerts import Alert, Diagnosis, Engine, diagnose
from stabwatch.runlog import Event, Meta, Run, find_run, plain, read_run

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SeriesSummary:
    """One series over the run: measured points, first and last value, least and largest finite value and where."""

    signal: str
    layer: str
    points: int
    first: float
    last: float
    least: float
    largest: float
    largest_step: int
    nonfinite: int


@dataclass(frozen=True)
class Analysis:
    """What a run log says.

    steps: recorded steps. duration: seconds from the first record to the last. ended: reason of the end event, None
    when there is none. coverage: {'taps', 'fired', 'missing'} of the last coverage event. errors: probe errors.
    damaged_records, bad_event_lines: stepped over while reading; torn_bytes: at the end, no whole record.
    """

    path: Path
    meta: Meta
    steps: int
    first_step: int | None
    last_step: int | None
    duration: float
    ended: str | None
    diagnosis: Diagnosis
    alerts: tuple[Alert, ...]
    series: tuple[SeriesSummary, ...]
    coverage: dict[str, Any]
    errors: tuple[dict[str, Any], ...]
    damaged_records: int = 0
    bad_event_lines: int = 0
    torn_bytes: int = 0

    @property
    def exit_code(self) -> int:
        """0 calm, 1 something fired that is more than information."""
        return int(any(a.state == "firing" and a.severity in ("warning", "critical") for a in self.alerts))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        data = {
            "schema": SCHEMA_VERSION,
            "run": asdict(self.meta),
            "path": str(self.path),
            "steps": self.steps,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "duration_seconds": self.duration,
            "ended": self.ended,
            "calm": self.exit_code == 0,
            "diagnosis": self.diagnosis.to_dict(),
            "alerts": [a.to_dict() for a in self.alerts],
            "series": [asdict(s) for s in self.series],
            "coverage": self.coverage,
            "errors": list(self.errors),
            "damaged_records": self.damaged_records,
            "bad_event_lines": self.bad_event_lines,
            "torn_bytes": self.torn_bytes,
        }
        return plain(data)


def analyze(path: str | Path) -> Analysis:
    """Analyse a run folder, or the newest one inside a folder. Raises RunLogError."""
    return analyze_run(read_run(find_run(path)))


def analyze_run(run: Run) -> Analysis:
    """Analyse a run that has been read."""
    engine = Engine()
    _show(engine, run.events, "change")
    for block in run.blocks:
        engine.observe(block)
    _show(engine, run.events, "flight", "guard")
    end = _end(run.events)
    if end is not None:
        engine.observe_event(end)
    coverage = _last(run.events, "coverage")
    return Analysis(
        path=run.path,
        meta=run.meta,
        steps=len(run.steps),
        first_step=int(run.steps[0]) if len(run.steps) else None,
        last_step=int(run.steps[-1]) if len(run.steps) else None,
        duration=float(run.times[-1] - run.times[0]) if len(run.times) else 0.0,
        ended=str(end.data.get("reason", "unknown")) if end else None,
        diagnosis=diagnose(engine),
        alerts=engine.history,
        series=_summaries(run),
        coverage=coverage.data if coverage else {},
        errors=tuple({"time": e.time, "step": e.step, **e.data} for e in run.events if e.kind == "error"),
        damaged_records=run.damaged_records,
        bad_event_lines=run.bad_event_lines,
        torn_bytes=run.torn_bytes,
    )


def _show(engine: Engine, events: tuple[Event, ...], *kinds: str) -> None:
    for event in events:
        if event.kind in kinds:
            engine.observe_event(event)


def _last(events: tuple[Event, ...], kind: str) -> Event | None:
    return next((e for e in reversed(events) if e.kind == kind), None)


def _end(events: tuple[Event, ...]) -> Event | None:
    """The end event, unless the run was started again after it."""
    last = next((e for e in reversed(events) if e.kind in ("start", "end")), None)
    return last if last is not None and last.kind == "end" else None


def _summaries(run: Run) -> tuple[SeriesSummary, ...]:
    out = []
    for key in run.keys:
        steps, values = run.series(key.signal, key.layer)
        good = np.isfinite(values)
        if not len(values):
            continue
        kept, where = values[good], steps[good]
        peak = int(np.argmax(kept)) if len(kept) else -1
        out.append(
            SeriesSummary(
                signal=key.signal,
                layer=key.layer,
                points=len(values),
                first=float(values[0]),
                last=float(values[-1]),
                least=float(kept.min()) if len(kept) else math.nan,
                largest=float(kept[peak]) if len(kept) else math.nan,
                largest_step=int(where[peak]) if len(kept) else -1,
                nonfinite=int((~good).sum()),
            )
        )
    return tuple(out)
