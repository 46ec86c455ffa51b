"""The loss scale of fp16 training: a collapse, or the scaler's ordinary search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabwatch.analysis.detectors.robust import spans
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.findings import Finding

FALL = 32.0
"""Five halvings in a row. The scaler's own probing upwards costs one, or two where it has patience."""
START = 0.02
"""Of the records, and ten at least, in which a scale is searched for."""
LEAST = 1.0
"""A scale below one makes gradients smaller: what overflows then is no matter of scale."""
LOW = 4.0
"""No search at the start of a healthy training ends as low."""
NEAR = 2
"""Records between two overflows of one burst."""


@dataclass
class _Burst:
    """Overflows in consecutive records. at: index of a record; scale: before the first and after the last."""

    first: int
    last: int
    count: int
    before: float
    after: float
    line: int
    stuck: int = 0
    """How often a reduction left the scale as it was."""

    @property
    def fall(self) -> float:
        return self.before / self.after if self.after > 0 and np.isfinite(self.before) else 1.0


def find(part: RunSegment) -> list[Finding]:
    """Collapses one by one; everything benign as one finding."""
    bursts = _told(part) or _printed(part)
    if not bursts:
        return _low(part)
    begun = max(10, round(START * len(part.steps))) if part.fresh else 0
    bad = [b for b in bursts if _bad(b, b.first < begun)]
    found = [_collapse(part, b) for b in bad] or _low(part)
    benign = [b for b in bursts if b not in bad]
    return [*found, *_search(part, benign, begun)]


def _low(part: RunSegment) -> list[Finding]:
    """A scale that stands below 1, however it got there."""
    column = part.of("loss_scale")
    if column is None:
        return []
    low = spans((column.values < LEAST) & (column.values > 0))
    if not low or low[-1][1] < len(column) or low[-1][1] - low[-1][0] < 3:
        return []
    i, last = low[-1][0], float(column.values[-1])
    step, line, points = int(column.steps[i]), int(column.lines[i]), len(column) - i
    return [
        Finding(
            kind="loss_scale_collapse",
            severity="critical",
            step=step,
            end_step=None,
            points=points,
            size=1 / last,
            confidence=0.85,
            line=line,
            text=f"The loss scale is below 1 from step {step} to the end, {last:g} at last: no gradient needs that.",
        )
    ]


def _bad(burst: _Burst, at_start: bool) -> bool:
    if burst.after < LEAST or burst.stuck >= 3:
        return True
    if burst.fall < FALL or burst.count < 3:
        return False
    return not at_start or burst.after <= LOW


def _told(part: RunSegment) -> list[_Burst]:
    """From messages of overflows, which name the new scale."""
    bursts: list[_Burst] = []
    for remark in (r for r in part.remarks if r.kind == "overflow"):
        at = int(np.searchsorted(part.steps, remark.step, side="right")) if remark.step is not None else 0
        burst = bursts[-1] if bursts else None
        if burst is not None and at - burst.last <= NEAR and remark.value <= burst.after:
            burst.stuck += int(remark.value == burst.after and remark.value <= LEAST)
            burst.last, burst.after, burst.count = at, remark.value, burst.count + 1
        else:
            before = _scale_before(part, remark.step)
            bursts.append(_Burst(at, at, 1, 2 * remark.value if before is None else before, remark.value, remark.line))
    return bursts


def _scale_before(part: RunSegment, step: int | None) -> float | None:
    """The scale that the log printed last."""
    column = part.of("loss_scale")
    if column is None or step is None:
        return None
    earlier = column.values[column.steps <= step]
    return float(earlier[-1]) if len(earlier) else None


def _printed(part: RunSegment) -> list[_Burst]:
    """From the column of the scale, which may skip many steps between two records."""
    column = part.of("loss_scale")
    if column is None:
        return []
    bursts: list[_Burst] = []
    for i in np.flatnonzero(np.diff(column.values) < 0).tolist():
        at = int(np.searchsorted(part.steps, column.steps[i + 1]))
        before, after, line = float(column.values[i]), float(column.values[i + 1]), int(column.lines[i + 1])
        if bursts and at - bursts[-1].last <= NEAR and before <= bursts[-1].after:
            bursts[-1].last, bursts[-1].after, bursts[-1].count = at, after, bursts[-1].count + 1
        else:
            bursts.append(_Burst(at, at, 1, before, after, line))
    return bursts


def _step(part: RunSegment, at: int) -> int:
    return int(part.steps[min(at, len(part.steps) - 1)]) if len(part.steps) else 0


def _collapse(part: RunSegment, burst: _Burst) -> Finding:
    last = burst.last >= len(part.steps) - NEAR
    low = burst.after < LEAST or burst.stuck > 0
    text = (
        f"The loss scale collapses at step {_step(part, burst.first)}: from {burst.before:g} to {burst.after:g} in "
        f"{burst.count} overflows in a row{'. Below 1, overflows are no matter of scale any more' if low else ''}."
    )
    return Finding(
        kind="loss_scale_collapse",
        severity="critical" if low else "warning",
        step=_step(part, burst.first),
        end_step=None if last else _step(part, burst.last),
        points=burst.last - burst.first + 1,
        size=burst.fall,
        confidence=0.9,
        line=burst.line,
        text=text,
        evidence=(f"{burst.count} overflows from step {_step(part, burst.first)} to {_step(part, burst.last)}.",),
    )


def _search(part: RunSegment, bursts: list[_Burst], begun: int) -> list[Finding]:
    if not bursts:
        return []
    total = sum(b.count for b in bursts)
    late = sum(b.count for b in bursts if b.first >= begun)
    return [
        Finding(
            kind="loss_scale_search",
            severity="info",
            step=_step(part, bursts[0].first),
            end_step=_step(part, bursts[-1].last),
            points=total,
            size=max(b.fall for b in bursts),
            confidence=0.9,
            line=bursts[0].line,
            text=(
                f"The fp16 loss scale was reduced {total} times, {total - late} of them at the start: its ordinary "
                f"search, as it never fell by {FALL:g} times at once afterwards."
            ),
            evidence=(f"Least scale: {min(b.after for b in bursts):g}.",),
        )
    ]
