"""What a training log says: findings in order, causes with their runbooks, and what the log cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabwatch.alerts import Diagnosis
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.analysis.causes import causes_of
from stabwatch.analysis.detectors import DETECTORS, reinitialisation, restarts
from stabwatch.analysis.detectors.segments import RunSegment, cut, segments
from stabwatch.analysis.findings import Finding
from stabwatch.analysis.limitations import limitations
from stabwatch.analysis.readers.log import Log, LogRun

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Examination:
    """What one run of a log says.

    records: of training. loss: what the loss column is called in the log, None if there is none. unseen: what the log
    cannot show, in words.
    """

    run: LogRun
    records: int
    first_step: int | None
    last_step: int | None
    loss: str | None
    findings: tuple[Finding, ...]
    diagnosis: Diagnosis
    limitations: tuple[str, ...]

    @property
    def calm(self) -> bool:
        """Nothing more than information."""
        return not any(finding.trouble for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        return _finite(
            {
                "name": self.run.name,
                "records": self.records,
                "step_unit": self.run.step_unit,
                "first_step": self.first_step,
                "last_step": self.last_step,
                "loss": self.loss,
                "calm": self.calm,
                "diagnosis": self.diagnosis.to_dict(),
                "findings": [finding.to_dict() for finding in self.findings],
                "columns": [{"name": c.name, "role": c.role, "points": len(c)} for c in self.run.columns],
                "unseen": list(self.limitations),
            }
        )


@dataclass(frozen=True)
class LogReport:
    """What a log says, run by run."""

    path: Path
    format: str
    notes: tuple[str, ...]
    runs: tuple[Examination, ...]

    @property
    def exit_code(self) -> int:
        """0 calm, 1 at least one finding that is more than information."""
        return int(not all(run.calm for run in self.runs))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `docs/analyze.md` describes it."""
        return {
            "schema": SCHEMA_VERSION,
            "kind": "log",
            "path": str(self.path),
            "format": self.format,
            "notes": list(self.notes),
            "calm": self.exit_code == 0,
            "runs": [run.to_dict() for run in self.runs],
        }


def examine(log: Log) -> LogReport:
    """Look at every run of a log."""
    return LogReport(log.path, log.format, log.notes, tuple(examine_run(run) for run in log.runs))


def examine_run(run: LogRun) -> Examination:
    """Look at one run."""
    with np.errstate(all="ignore"):  # a log may hold any number
        return _examined(run)


def _examined(run: LogRun) -> Examination:
    stretches = list(segments(run))
    findings = [*restarts.find(stretches), *(f for part in stretches for f in _of_part(part))]
    findings.sort(key=lambda f: (f.line if f.line >= 0 else f.step, f.step, SEVERITIES.index(f.severity)))
    losses = [part.loss.name for part in stretches if part.loss is not None]
    return Examination(
        run=run,
        records=len(run.steps),
        first_step=int(run.steps.min()) if len(run.steps) else None,
        last_step=int(run.steps.max()) if len(run.steps) else None,
        loss=losses[0] if losses else None,
        findings=tuple(findings),
        diagnosis=_diagnosis(run, stretches, findings),
        limitations=tuple(limitations(run, stretches)),
    )


def _of_part(part: RunSegment) -> Iterator[Finding]:
    """All findings of a part, which every re-initialisation cuts in two."""
    begun = reinitialisation.find(part)
    yield from begun
    for finding in begun:
        early, part = cut(part, finding.step)
        yield from _detected(early)
    yield from _detected(part)


def _detected(part: RunSegment) -> list[Finding]:
    """What the detectors say; single outliers on the way into a divergence are part of it."""
    found = [finding for find in DETECTORS for finding in find(part)]
    gone = min((f.step for f in found if f.kind == "divergence"), default=None)
    return [f for f in found if f.kind != "loss_outliers" or gone is None or (f.end_step or 0) < gone]


def _diagnosis(run: LogRun, stretches: list[RunSegment], findings: list[Finding]) -> Diagnosis:
    causes = causes_of(run, findings)
    if not causes:
        return Diagnosis(_calm(run, stretches))
    also = [cause.title.lower() for _, cause in causes[1:]]
    more = f" Also: {', '.join(also)}." if also else ""
    return Diagnosis(causes[0][0].text + more, tuple(cause for _, cause in causes))


def _calm(run: LogRun, stretches: list[RunSegment]) -> str:
    if not len(run.steps):
        return "No record of training was found."
    over = f"in {len(run.steps):,} records, {run.step_unit if run.step_unit != 'ordinal' else 'record'}s "
    over += f"{run.steps.min():,} to {run.steps.max():,}"
    if not any(part.loss is not None for part in stretches):
        return f"There is no loss in this log: nothing can be said of how training went, {over}."
    return f"Nothing went wrong that this log shows, {over}."


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
