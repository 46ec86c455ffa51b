"""Errors that the log prints."""

from __future__ import annotations

import re

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.segments import RunSegment

_FATAL = re.compile(
    r"out of memory|cuda error|nccl|segmentation|floatingpoint|device-side assert|\becc\b|bus error"
    r"|illegal (?:memory|instr)|\b(?:loss|grad\w*)\b.*\b(?:nan|inf)\b|no space left|runtimeerror",
    re.IGNORECASE,
)
"""Messages of errors that end a run. Interrupts and signals come from outside, often after the end."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, for the last error: training continued after earlier ones."""
    errors = [remark for remark in segment.remarks if remark.kind == "error"]
    if not errors:
        return []
    last = errors[-1]
    final = len(segment.steps) > 0 and last.line > segment.lines[-1] >= 0 and _FATAL.search(last.text) is not None
    step = last.step if last.step is not None else int(segment.steps[0]) if len(segment.steps) else 0
    after = f" after step {step}" if last.step is not None else " before the first record" * bool(len(segment.steps))
    words = "The log ends with an error" if final else "An error was printed"
    return [
        Incident(
            condition="TrainingStopped" if final else "LoggedError",
            severity="warning" if final else "info",
            first_step=step,
            last_step=None if final else step,
            records=len(errors),
            confidence="likely" if final else "possible",
            line=last.line,
            text=f"{words}{after}: {last.text.strip()[:200]}",
            evidence=(f"{len(errors)} lines with errors.",) if len(errors) > 1 else (),
        )
    ]
