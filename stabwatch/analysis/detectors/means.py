"""Means over an epoch or over an evaluation that are far above all near them, in one record already.

A batch may be odd, and so a single record of a loss tells little. A mean over thousands of samples does not jump by
chance: where such records have hardly risen before, one that is a multiple of them is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors import validated
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.learning_rate import warm_restart
from stabwatch.analysis.detectors.robust import Array, scatter
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_perplexity

MOST = 200
"""Most records of such a curve."""
NEAR = 3
"""Records before a jump with which it is compared."""
NOISE = 6.0
"""Smallest jump in scatters of the changes before, in logarithms."""
HARDLY, STEADY = 1.1, 3.0
"""Largest ratio from one record to the next of a curve that hardly rises, and the same there: its changes are falls."""
ROSE = 1.25
"""Largest ratio from one of the few records before a jump to the next."""
FEW = 4
"""Records from which their changes have a scatter."""
AT_THE_END = ((1, 2.4, 3), (2, 2.2, 2))
"""For the loss of an epoch that ends high: records at the end, their ratio to those near, and fewest before."""
EVALUATED = ((1, 20.0, 3), (2, 8.0, 3), (3, 4.0, 3))
"""The same for an evaluation, whose samples are fewer."""
OF_BATCHES = ((1, 10.0, 4),)
"""The same for the loss of a batch, in the last record of an excerpt."""
EXCERPT = 32
"""Most records of such an excerpt."""
ABOVE_ALL = 1.5
"""Ratio of the end to all records before, which another training in the same log does not exceed."""
INSIDE, OF_EVALUATION, WIDEST = 2.2, 12.0, 3
"""Ratio to the records near of a rise that comes back, the same of an evaluation, and most records of it."""
BACK, OFTEN = 1.3, 2
"""Ratio to them at which it is back, and the most such rises of a curve that is not rough."""
SHARE = 0.05
"""Smallest rise as a share of the first loss."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident of each loss, where no other detector sees a rise of the training loss."""
    if not segment.must_fall or segment.watched:
        return []
    return [incident for column, limits in _columns(segment) for incident in _of_column(segment, column, limits)]


Limits = tuple[tuple[int, float, int], ...]


def _columns(segment: RunSegment) -> Iterator[tuple[Column, Limits]]:
    loss, told = segment.of("loss"), segment.of("eval_loss")
    if loss is not None and not segment.excursions:
        epochs = segment.run.step_unit == "epoch"
        if epochs or len(loss) <= EXCERPT:
            yield loss, AT_THE_END if epochs else OF_BATCHES
    if told is not None and (loss is None or validated.evaluated_twice(segment, loss) is None):
        yield told, EVALUATED


def _of_column(segment: RunSegment, column: Column, limits: Limits) -> list[Incident]:
    if not FEW <= len(column) <= MOST or not np.isfinite(column.values).all() or column.values.min() <= 0:
        return []
    found = _ends_high(segment, column, limits)
    return found if found or limits is OF_BATCHES else _comes_back(segment, column)


def _name(column: Column) -> str:
    kind = "perplexity" if is_perplexity(column.name) else "loss"
    return f"validation {kind} ('{column.name}')" if column.role == "eval_loss" else f"{kind} ('{column.name}')"


def _jumps(values: Array, i: int, times: float) -> bool:
    """Whether the record at i is so many times those before it, and these had hardly risen."""
    near = values[max(0, i - NEAR) : i]
    if values[i] < times * near.max():
        return False
    changes = np.diff(np.log(values[:i]))
    if len(changes) < FEW:
        return bool(changes.max(initial=-math.inf) <= math.log(ROSE))
    noise = (STEADY if changes.max() <= math.log(HARDLY) else NOISE) * scatter(changes)
    return math.log(float(values[i] / near.max())) >= noise and bool(changes.max() <= math.log(times) / 2)


def _ends_high(segment: RunSegment, column: Column, limits: Limits) -> list[Incident]:
    values = column.values
    for records, times, before in limits:
        last = records == limits[-1][0] > 1
        starts = range(before, len(values) - records + 1) if last else [len(values) - records]
        for i in starts:
            if i < before or not _jumps(values, i, times):
                continue
            top = float(values[max(0, i - NEAR) : i].max())
            lost = column.role == "eval_loss" or values[i:].min() >= ABOVE_ALL * values[:i].max()
            if values[i:].min() < times * top or not lost or _restarts(segment, column, i):
                continue
            where = "in the last record of the log" if i == len(values) - 1 else "and stays there to the end"
            text = (
                f"The {_name(column)} jumps from {values[i - 1]:.4g} to {values[i]:.4g} at step "
                f"{column.steps[i]}, {where}; before, it never rose by nearly as much."
            )
            text += how_sure(len(values), "possible")
            condition = "LossSpike" if i == len(values) - 1 else "LossDivergence"
            ratio = float(values[i:].max()) / float(values[i - 1])
            signal = column.name if column.role == "eval_loss" else ""
            return [to_the_end(column, i, text, condition=condition, signal=signal, ratio=ratio, confidence="possible")]
    return []


def _comes_back(segment: RunSegment, column: Column) -> list[Incident]:
    values, i, rises = column.values, FEW, list[tuple[int, int]]()
    times = OF_EVALUATION if column.role == "eval_loss" else INSIDE
    while i < len(values) - 2:
        top = float(values[max(0, i - NEAR) : i].max())
        back = np.flatnonzero(values[i : i + WIDEST + 1] <= BACK * top)
        if len(back) and back[0] and _jumps(values, i, times) and values[i] - top >= SHARE * values[0]:
            rises.append((i, i + int(back[0])))
            i = rises[-1][1]
        i += 1
    if not 0 < len(rises) <= OFTEN or _restarts(segment, column, rises[0][0]):
        return []
    start, stop = rises[0]
    rest = np.delete(values, np.concatenate([np.arange(a, b) for a, b in rises]))
    if float(rest[start:].max(initial=0.0)) > BACK * float(values[max(0, start - NEAR) : start].max()):
        return []
    peak = start + int(np.argmax(values[start:stop]))
    again = f" It does so again at step {column.steps[rises[1][0]]}." if len(rises) > 1 else ""
    text = (
        f"The {_name(column)} is {values[peak]:.4g} at step {column.steps[peak]}, after {values[start - 1]:.4g}, "
        f"and back after {number_of(stop - start)}: it is a mean of many samples, and never rose by nearly as much "
        f"before.{again}" + how_sure(len(values), "possible")
    )
    signal = column.name if column.role == "eval_loss" else ""
    found = to_the_end(
        column, start, text, condition="LossSpike", signal=signal, ratio=float(values[peak] / values[start - 1]),
        confidence="possible",
    )  # fmt: skip
    return [replace(found, last_step=int(column.steps[rises[-1][1] - 1]), records=sum(b - a for a, b in rises))]


def _restarts(segment: RunSegment, column: Column, i: int) -> bool:
    """Whether the learning rate was raised again there, or another loss begins."""
    before, at = int(column.steps[max(i - 2, 0)]), int(column.steps[i])
    return warm_restart(segment, before, at) is not None
