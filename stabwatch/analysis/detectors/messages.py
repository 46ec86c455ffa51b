"""Errors that the log itself tells of."""

from __future__ import annotations

import re

from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.findings import Finding

_FATAL = re.compile(
    r"out of memory|cuda error|nccl|segmentation|floatingpoint|device-side assert|\becc\b|bus error"
    r"|illegal (?:memory|instr)|\b(?:loss|grad\w*)\b.*\b(?:nan|inf)\b|no space left|runtimeerror",
    re.IGNORECASE,
)
"""What ends a training by itself. Interrupts and signals come from outside, and often when all is done."""


def find(part: RunSegment) -> list[Finding]:
    """At most one: the last, as an error that training survived is not what ended it."""
    told = [remark for remark in part.remarks if remark.kind == "error"]
    if not told:
        return []
    last = told[-1]
    final = len(part.steps) > 0 and last.line > part.lines[-1] >= 0 and _FATAL.search(last.text) is not None
    step = last.step if last.step is not None else int(part.steps[0]) if len(part.steps) else 0
    words = "The log ends with an error" if final else "An error was printed"
    return [
        Finding(
            kind="error",
            severity="warning" if final else "info",
            step=step,
            end_step=None if final else step,
            points=len(told),
            size=float("nan"),
            confidence=0.8 if final else 0.5,
            line=last.line,
            text=f"{words} after step {step}: {last.text.strip()[:200]}",
            evidence=(f"{len(told)} lines that speak of errors.",) if len(told) > 1 else (),
        )
    ]
