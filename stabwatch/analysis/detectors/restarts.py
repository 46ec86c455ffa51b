"""Steps that go back: a new run in the same file, or a resume from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.findings import Finding

SHOWN = 3
"""Restarts that are told one by one; of more, the first, with their number."""


def find(parts: Sequence[RunSegment]) -> list[Finding]:
    """From the parts of a run."""
    again = [part for part in parts if part.before is not None and len(part.before.steps) and len(part.steps)]
    found = [_finding(part) for part in again]
    if len(found) <= SHOWN:
        return found
    first, steps = found[0], ", ".join(str(part.steps[0]) for part in again[:12])
    new = sum(f.kind == "restart" for f in found)
    return [
        Finding(
            kind=first.kind,
            severity="info",
            step=first.step,
            end_step=found[-1].step,
            points=len(found),
            size=first.size,
            confidence=0.9,
            line=first.line,
            text=(
                f"The step goes back {len(found)} times: {len(found) + 1} stretches in one file, {new} of them new "
                f"runs and {len(found) - new} resumed."
            ),
            evidence=(f"They begin at steps {steps}{' ...' * (len(found) > 12)}.",),
        )
    ]


def _finding(part: RunSegment) -> Finding:
    before = part.before
    assert before is not None
    last, now = int(before.steps[-1]), int(part.steps[0])
    fresh = part.fresh
    if fresh:
        text = f"A new run begins in the same file after step {last}: the step goes back to {now}."
    else:
        text = f"The run goes on from step {now} after it had come to {last}: resumed, {last - now} steps done again."
    return Finding(
        kind="restart" if fresh else "resume",
        severity="info",
        step=now,
        end_step=now,
        points=1,
        size=float(last - now),
        confidence=0.95,
        line=int(part.lines[0]),
        text=text,
        evidence=_losses(before, part),
    )


def _losses(before: RunSegment, part: RunSegment) -> tuple[str, ...]:
    old, new = before.finite_loss, part.finite_loss
    if old is None or new is None or not len(old) or not len(new):
        return ()
    return (f"The {part.loss_name} was {np.median(old.values[-5:]):.4g} before and is {new.values[0]:.4g} after.",)
