"""Steps that go back: a new run in the same file, or a resume from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.segments import RunSegment

SHOWN = 3
"""Most restarts that are reported one by one. If there are more, one incident has the first and the count."""


def find(found_segments: Sequence[RunSegment]) -> list[Incident]:
    """Restarts between the segments of a run."""
    again = [
        segment
        for segment in found_segments
        if segment.before is not None and len(segment.before.steps) and len(segment.steps)
    ]
    found = [_incident(segment) for segment in again]
    if len(found) <= SHOWN:
        return found
    first, steps = found[0], ", ".join(str(segment.steps[0]) for segment in again[:12])
    new = sum(f.condition == "RunRestarted" for f in found)
    return [
        Incident(
            condition=first.condition,
            severity="info",
            first_step=first.first_step,
            last_step=found[-1].first_step,
            records=len(found),
            ratio=first.ratio,
            confidence="likely",
            line=first.line,
            text=(
                f"The step goes back {len(found)} times: {len(found) + 1} segments in one file, {new} of them new "
                f"runs and {len(found) - new} resumed."
            ),
            evidence=(f"They begin at steps {steps}{' ...' * (len(found) > 12)}.",),
        )
    ]


def _incident(segment: RunSegment) -> Incident:
    before = segment.before
    assert before is not None
    last, now = int(before.steps[-1]), int(segment.steps[0])
    fresh = segment.fresh
    if fresh:
        text = f"A new run begins in the same file after step {last}: the step goes back to {now}."
    else:
        text = f"The run continues from step {now} after step {last}: it was resumed and repeated {last - now} steps."
    return Incident(
        condition="RunRestarted" if fresh else "RunResumed",
        severity="info",
        first_step=now,
        last_step=now,
        records=1,
        ratio=float(last - now),
        confidence="certain",
        line=int(segment.lines[0]),
        text=text,
        evidence=_losses(before, segment),
    )


def _losses(before: RunSegment, segment: RunSegment) -> tuple[str, ...]:
    old, new = before.finite_loss, segment.finite_loss
    if old is None or new is None or not len(old) or not len(new):
        return ()
    return (f"The {segment.loss_name} was {np.median(old.values[-5:]):.4g} before and is {new.values[0]:.4g} after.",)
