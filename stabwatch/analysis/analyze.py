"""Post-hoc: the rules over a whole run log, exactly as live, and what the log says besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stabwatch.alerts import Alert, Diagnosis, Engine, diagnose
from stabwatch.analysis.summaries import SeriesSummary, Summaries
from stabwatch.runlog import Event, Meta, RecordBatch, Run, RunLog, find_run, plain
from stabwatch.runlog.downsample import Downsampled
from stabwatch.runlog.source import BATCH_RECORDS, Source, record_slice

SCHEMA_VERSION = 1


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
    return analyze_log(RunLog(find_run(path)))[0]


def analyze_log(log: Source, progress: Callable[[Source], None] | None = None) -> tuple[Analysis, Run]:
    """Analyse a run log that is streamed; gives also the run, its records merged where they are many, for the curves.

    Raises RunLogError.
    """
    kept, events = Downsampled(), tuple(log.poll_events())

    def blocks() -> Iterator[RecordBatch]:
        for block in log.stream():
            for start in range(0, len(block), BATCH_RECORDS):
                piece = record_slice(block, start, start + BATCH_RECORDS)
                kept.add(piece)
                yield piece
            if progress is not None:
                progress(log)

    analysis = _analyzed(log, blocks(), events)
    return analysis, kept.run(log, events)


def analyze_run(run: Run) -> Analysis:
    """Analyse a run that has been read."""
    return _analyzed(run, run.blocks, run.events)


def _analyzed(run: Run | Source, blocks: Iterable[RecordBatch], events: tuple[Event, ...]) -> Analysis:
    engine, summaries = Engine(), Summaries()
    _show(engine, events, "change")
    for block in blocks:
        engine.observe(block)
        summaries.add(block)
    _show(engine, events, "flight", "guard")
    end = _end(events)
    if end is not None:
        engine.observe_event(end)
    coverage = _last(events, "coverage")
    return Analysis(
        path=run.path,
        meta=run.meta,
        steps=summaries.records,
        first_step=summaries.first_step,
        last_step=summaries.last_step,
        duration=summaries.duration,
        ended=str(end.data.get("reason", "unknown")) if end else None,
        diagnosis=diagnose(engine),
        alerts=engine.history,
        series=summaries.of_all(),
        coverage=coverage.data if coverage else {},
        errors=tuple({"time": e.time, "step": e.step, **e.data} for e in events if e.kind == "error"),
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
