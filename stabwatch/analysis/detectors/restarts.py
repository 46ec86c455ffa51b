"""Steps that go back: training that begins again in the same log, or goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of

NEAR = 5
"""Records on either side of a resume that are compared."""
JUMP = 1.5
"""Ratio of all records after a resume to the highest before it."""
BACK = 1.1
"""Ratio to the level before at which the loss is back."""
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
    jumps = [jump for segment in again if (jump := _jump(segment)) is not None]
    if len(found) <= SHOWN:
        return [*found, *jumps]
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
                f"The step goes back {len(found)} times: {len(found) + 1} segments in one log; {new} times training "
                f"begins again, {len(found) - new} times it is resumed."
            ),
            evidence=(f"They begin at steps {steps}{' ...' * (len(found) > 12)}.",),
        ),
        *jumps,
    ]


def _jump(segment: RunSegment) -> Incident | None:
    """A loss far above that before the resume, in all records after it: neither segment alone shows that."""
    before = segment.before
    if before is None or segment.fresh or not segment.must_fall:
        return None
    old, new = before.finite_loss, segment.finite_loss
    if old is None or new is None or len(old) < NEAR or len(new) < NEAR or old.name != new.name:
        return None
    known = old.values[old.steps <= new.steps[0]][-NEAR:]
    base = float(np.median(known)) if len(known) else 0.0
    if base <= 0 or float(new.values[:NEAR].min()) < JUMP * max(base, float(known.max())):
        return None
    back = np.flatnonzero(new.values <= BACK * base)
    stop = int(back[0]) if len(back) else len(new)
    end = "and has not come back" if stop == len(new) else f"and was back after {number_of(stop)}"
    return Incident(
        condition="LossShift" if stop == len(new) else "LossSpike",
        severity="warning",
        first_step=int(new.steps[0]),
        last_step=None if stop == len(new) else int(new.steps[stop - 1]),
        records=stop,
        ratio=float(new.values[:stop].max()) / base,
        confidence="likely",
        line=int(new.lines[0]),
        text=(
            f"The {segment.loss_name} jumped where the run was resumed, at step {new.steps[0]}, from {base:.4g} to "
            f"{new.values[0]:.4g}, {end}: the weights, the state of the optimizer or the data are not those of before."
        ),
    )


def _incident(segment: RunSegment) -> Incident:
    before = segment.before
    assert before is not None
    last, now = int(before.steps[-1]), int(segment.steps[0])
    fresh = segment.fresh
    if fresh:
        text = f"After step {last}, training begins again in the same log: the step goes back to {now}."
    else:
        repeated = number_of(last - now, "step")
        text = f"The run continues from step {now} after step {last}: it was resumed and repeated {repeated}."
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
