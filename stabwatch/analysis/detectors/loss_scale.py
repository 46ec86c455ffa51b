"""The loss scale of fp16 training: a collapse, or the normal search of the scaler."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.robust import spans
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of
from stabwatch.analysis.readers.names import number

FALL = 32.0
"""Five halvings in a row. When the scaler raises its scale to test it, it needs one or two halvings."""
START = 0.02
"""Share of the records (at least ten) that belong to the initial search for a scale."""
LEAST = 1.0
"""A scale below 1 makes gradients smaller. An even smaller scale cannot prevent the overflow then."""
FAR_BELOW = 0.1
"""A scale that one record at the end is enough to report."""
LOW = 4.0
"""The initial search of a healthy run never ends this low."""
USUAL = 65536.0
"""The scale at which a scaler begins (torch.amp.GradScaler, DeepSpeed); a fall to no less is a part of its search."""
WORN = 32.0
"""A scale that a healthy scaler seldom needs, after which three reductions in a row are no probing."""
SKIPS = 2
"""Fewest records at the end in which steps are skipped at a scale of 1 or less."""
RISES = 2.0
"""Ratio of the loss to all before it, from which two reductions of a worn scale are no probing."""
NEAR = 2
"""Most records between two overflows of one burst."""
_ATTEMPTED = re.compile(r"loss scale: ([\d.e+-]+), reducing")
"""DeepSpeed's messages also have the scale before."""
_GIVES_UP = re.compile(r"grad[_ ]scale is too small", re.IGNORECASE)


@dataclass
class _Burst:
    """A burst of overflows. scale: before the first overflow and after the last.

    first, last: indices of records. began, ended: steps of the first and the last overflow, None where none is told.
    """

    first: int
    last: int
    began: int | None
    ended: int | None
    count: int
    before: float
    after: float
    line: int
    stuck: int = 0
    """Number of reductions that did not change the scale."""
    told: bool = True
    """Whether the log has the scale before; otherwise it was half of it."""
    word: str = "overflow"
    """What is counted: messages of overflows, or records with a lower scale."""

    @property
    def fall(self) -> float:
        return self.before / self.after if self.after > 0 and np.isfinite(self.before) else 1.0


def find(segment: RunSegment) -> list[Incident]:
    """Collapses one by one; all benign reductions as one incident."""
    bursts = _from_messages(segment) or _from_column(segment)
    if not bursts:
        return _low(segment) or _at_minimum(segment) or _skipping(segment)
    begun = max(10, round(START * len(segment.steps))) if segment.fresh else 0
    bad = [b for b in bursts if _bad(b, b.first < begun, _loss_rises(segment, b))]
    found = [_collapse(segment, b) for b in bad] or _low(segment) or _at_minimum(segment) or _skipping(segment)
    benign = [b for b in bursts if b not in bad]
    return [*found, *_search(segment, benign, begun)]


def _low(segment: RunSegment) -> list[Incident]:
    """A scale that is below 1 at the end."""
    column = segment.of("loss_scale")
    if column is None:
        return []
    low = spans((column.values < LEAST) & (column.values > 0))
    if not low or low[-1][1] < len(column):
        return []
    i, last = low[-1][0], float(column.values[-1])
    points = len(column) - i
    if points < min(3, max(len(column), 2)) and last > FAR_BELOW:
        return []
    where = f"from step {column.steps[i]} to the end" if points > 1 else f"at step {column.steps[i]}"
    text = f"The loss scale is below 1 {where} ({last:g}): no gradient needs that."
    return [to_the_end(column, i, text, condition="LossScaleCollapse", severity="critical", ratio=1 / last)]


def _at_minimum(segment: RunSegment) -> list[Incident]:
    """The trainer says that its scale cannot be reduced any more."""
    told = next((r for r in segment.remarks if r.kind == "overflow" and np.isnan(r.value)), None)
    if told is None:
        return []
    known = told.stepped and told.step is not None
    where = f"at step {told.step}" if known else f"in line {told.line}"
    return [
        Incident(
            condition="LossScaleCollapse",
            severity="critical",
            first_step=told.step or 0,
            last_step=None,
            records=1,
            confidence="likely",
            line=told.line,
            text=f"The loss scale is at its minimum {where}, where the trainer cannot reduce it any more.",
            evidence=(told.text[:200],),
        )
    ]


def _skipping(segment: RunSegment) -> list[Incident]:
    """Steps are skipped in the last records, although the scale is 1 or less in all of them."""
    scale, skipped = segment.of("loss_scale"), segment.of("skipped_steps")
    if scale is None or skipped is None or len(scale) < SKIPS or len(skipped) < SKIPS:
        return []
    if scale.values[-SKIPS:].max() > LEAST or skipped.values[-SKIPS:].min() <= 0:
        return []
    start = int(np.flatnonzero(np.concatenate(([True], skipped.values <= 0)))[-1])
    step, total = int(skipped.steps[start]), int(skipped.values[start:].sum())
    text = (
        f"The loss scale is {scale.values[-1]:g}, and in each of {number_of(len(skipped) - start)} from step {step} to "
        f"the end steps are skipped, {total} in all: a smaller scale cannot prevent an overflow."
    )
    return [to_the_end(skipped, start, text, condition="LossScaleCollapse", severity="critical")]


def _loss_rises(segment: RunSegment, burst: _Burst) -> bool:
    """Whether the loss is above all before it once an overflow was told, up to the end."""
    loss = segment.finite_loss
    if loss is None or not burst.told or not len(segment.steps) or loss.role != "loss":
        return False
    first = segment.steps[min(max(burst.first - 1, 0), len(segment.steps) - 1)]
    before, after = loss.values[loss.steps <= first], loss.values[loss.steps > first]
    return len(before) > 1 and len(after) > 0 and 0 < RISES * float(before.max()) <= float(after.min())


def _bad(burst: _Burst, at_start: bool, rises: bool = False) -> bool:
    if burst.after < LEAST or burst.stuck >= 3:
        return True
    if burst.after >= USUAL:
        return False
    worn = burst.after <= WORN and burst.fall >= LOW
    if worn and rises and burst.count > 1 and not at_start:
        return True
    if burst.count < 3 or not (burst.fall >= FALL or (worn and not at_start)):
        return False
    return not at_start or burst.after <= LOW


def _from_messages(segment: RunSegment) -> list[_Burst]:
    """Bursts from overflow messages, which name the new scale."""
    bursts: list[_Burst] = []
    for remark in (r for r in segment.remarks if r.kind == "overflow" and not np.isnan(r.value)):
        at = int(np.searchsorted(segment.steps, remark.step, side="right")) if remark.step is not None else 0
        step = remark.step if remark.stepped else None
        burst = bursts[-1] if bursts else None
        if burst is not None and remark.value == burst.after and _GIVES_UP.search(remark.text):
            continue  # the error that ends the run, of the same overflow
        if burst is not None and at - burst.last <= NEAR and remark.value <= burst.after:
            burst.stuck += int(remark.value == burst.after and remark.value <= LEAST)
            burst.last, burst.ended, burst.after, burst.count = at, step, remark.value, burst.count + 1
        else:
            found = _ATTEMPTED.search(remark.text)
            before = number(found[1]) if found else _scale_before(segment, remark.step)
            before = None if before is not None and before < remark.value else before  # printed with too few digits
            stuck = int(before is not None and before == remark.value <= LEAST)
            usual = 2 * remark.value if before is None else before
            told = before is not None
            bursts.append(_Burst(at, at, step, step, 1, usual, remark.value, remark.line, stuck, told))
    return bursts


def _scale_before(segment: RunSegment, step: int | None) -> float | None:
    """The last printed scale before a step."""
    column = segment.of("loss_scale")
    if column is None or step is None:
        return None
    earlier = column.values[column.steps <= step]
    return float(earlier[-1]) if len(earlier) else None


def _from_column(segment: RunSegment) -> list[_Burst]:
    """Bursts from the column of the scale, which may skip many steps between two records."""
    column = segment.of("loss_scale")
    if column is None:
        return []
    bursts: list[_Burst] = []
    for i in np.flatnonzero(np.diff(column.values) < 0).tolist():
        step = int(column.steps[i + 1])
        at = int(np.searchsorted(segment.steps, step))
        before, after, line = float(column.values[i]), float(column.values[i + 1]), int(column.lines[i + 1])
        if bursts and at - bursts[-1].last <= NEAR and before <= bursts[-1].after:
            burst = bursts[-1]
            burst.last, burst.ended, burst.after, burst.count = at, step, after, burst.count + 1
        else:
            bursts.append(_Burst(at, at, step, step, 1, before, after, line, word="record"))
    return bursts


def _step(segment: RunSegment, told: int | None, at: int) -> int:
    """The step of an overflow: what the log tells, else that of the record after it."""
    if told is not None or not len(segment.steps):
        return told or 0
    return int(segment.steps[min(at, len(segment.steps) - 1)])


def _collapse(segment: RunSegment, burst: _Burst) -> Incident:
    last = burst.last >= len(segment.steps) - NEAR
    low = burst.after < LEAST or burst.stuck > 0
    began, ended = _step(segment, burst.began, burst.first), _step(segment, burst.ended, burst.last)
    known = burst.began is not None or len(segment.steps) > 0
    behind = burst.began is None and burst.first >= len(segment.steps)
    where = f"{'after' if behind else 'at'} step {began}" if known else f"in line {burst.line}"
    course = f"from {burst.before:g} to {burst.after:g}" if burst.told else f"to {burst.after:g}"
    what, times = f"collapses {where}: {course} in", "in a row"
    if burst.before == burst.after:
        what, times = f"is {burst.after:g} {where} and cannot be reduced, in spite of", ""
    elif burst.count == 1 or burst.word == "record":
        times = ""
    text = f"The loss scale {what} {number_of(burst.count, burst.word)} {times}".rstrip()
    if burst.count == 1 and (not burst.told or burst.before == burst.after):
        text = f"The loss scale is {burst.after:g} {where}"
    text += ". Below 1, a smaller scale cannot prevent an overflow." if low else "."
    overflows = number_of(burst.count, burst.word) + (" with a lower scale," if burst.word == "record" else "")
    when = where if behind else _between(began, ended)
    return Incident(
        condition="LossScaleCollapse",
        severity="critical" if low else "warning",
        first_step=began,
        last_step=None if last else ended,
        records=burst.last - burst.first + 1,
        ratio=burst.fall,
        confidence="likely",
        line=burst.line,
        text=text,
        evidence=(f"{overflows} {when}." if known else f"{overflows.rstrip(',')}; the log has no steps.",),
    )


def _between(first: int, last: int) -> str:
    return f"at step {first}" if first == last else f"from step {first} to {last}"


def _search(segment: RunSegment, bursts: list[_Burst], begun: int) -> list[Incident]:
    if not bursts:
        return []
    total = sum(b.count for b in bursts)
    early = sum(b.count for b in bursts if b.first < begun)
    at_start = f", {early} of them at the start" if early else ""
    far = max((b.fall for b in bursts if b.first >= begun and b.after < USUAL), default=1.0)
    why = f"It never fell by a factor of {FALL:g} at once to below {USUAL:,.0f}{' afterwards' * bool(early)}"
    why = (
        why
        if far < FALL
        else f"Once it fell by a factor of {far:g} between two records; how many reductions is not known"
    )
    printed = bursts[0].word == "record"
    times = f"is lower than before in {number_of(total)}" if printed else f"was reduced {number_of(total, 'time')}"
    usual = "" if far >= FALL else ": the normal search"
    return [
        Incident(
            condition="LossScaleSearch",
            severity="info",
            first_step=_step(segment, bursts[0].began, bursts[0].first),
            last_step=_step(segment, bursts[-1].ended, bursts[-1].last),
            records=total,
            ratio=max(b.fall for b in bursts),
            confidence="likely",
            line=bursts[0].line,
            text=f"The fp16 loss scale {times}{at_start}{usual}. {why}.",
            evidence=(f"Lowest scale: {min(b.after for b in bursts):g}.",),
        )
    ]
