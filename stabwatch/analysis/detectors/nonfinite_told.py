"""NaN that the trainer counts, or names in a message."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of

OUTLIVED = 3
"""Fewest finite losses after a message that show that training survived it."""
_NAMED = re.compile(r"nan|inf|finite", re.IGNORECASE)
_AT = re.compile(r"\b(?:at|in|on|for) (?:iteration|iter|step)s?\s*[=:#]?\s*(\d{1,15})\b", re.IGNORECASE)
"""The step that a message names."""


def counted(segment: RunSegment) -> Iterator[Incident]:
    """The trainer counts iterations with NaN."""
    counts = segment.of("nan_steps")
    if counts is None or not (counts.values > 0).any():
        return
    at = np.flatnonzero(counts.values > 0)
    yield Incident(
        condition="NonFinite",
        severity="critical" if len(at) > 2 else "warning",
        first_step=int(counts.steps[at[0]]),
        last_step=int(counts.steps[at[-1]]) if at[-1] < len(counts) - 1 else None,
        records=len(at),
        confidence="likely",
        line=int(counts.lines[at[0]]),
        text=f"The trainer counts steps with NaN from step {counts.steps[at[0]]} ('{counts.name}').",
        evidence=(f"{counts.values[at].sum():.0f} in {number_of(len(at))}.",),
    )


def in_messages(segment: RunSegment) -> Iterator[Incident]:
    messages = [remark for remark in segment.remarks if remark.kind == "nan_message"]
    if not messages:
        return
    first, last = messages[0], messages[-1].step
    named = _AT.search(first.text)
    step = first.step if first.step is not None else int(segment.steps[0]) if len(segment.steps) else 0
    loss = segment.finite_loss
    after = (
        f" after step {step}" if first.step is not None else " before the first record" if len(segment.steps) else ""
    )
    if named is not None and int(named[1]) >= step:
        step = int(named[1])
        after = f" of step {step}"
    outlived = loss is not None and int((loss.steps > step).sum()) >= OUTLIVED
    what = "NaN" if _NAMED.search(first.text) else "an explosion"
    yield Incident(
        condition="NonFinite",
        severity="info" if outlived else "critical",
        first_step=step,
        last_step=last if last is not None and loss is not None and (loss.steps > last).any() else None,
        records=len(messages),
        confidence="possible" if outlived else "likely",
        line=first.line,
        text=f"A message{after} reports {what}: {first.text.strip()[:160]}",
        evidence=(f"{len(messages)} such messages." if len(messages) > 1 else "One such message.",),
    )
