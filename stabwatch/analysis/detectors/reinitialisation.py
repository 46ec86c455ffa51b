"""Re-initialisation: the loss returns to the value of its first record while the step counter continues."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.learning_rate import warm_restart
from stabwatch.analysis.detectors.robust import SUSTAINED, Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column

LEARNED = 0.7
"""Share of its first value below which the loss must have fallen; otherwise there is no progress to lose."""
CYCLE = 0.05
"""After a warm restart of the schedule, a loss stays at least this far below its first value."""
SAME = 0.15
"""Largest difference of the first record, and of those after it, from the beginning."""

RECENT, USUAL = 100, 0.05
"""Records before it, and the largest share of them that may be as high as those of a fresh model."""


def find(segment: RunSegment) -> list[Incident]:
    """All returns to the beginning, in order. None where losses of different steps are not comparable."""
    loss = segment.finite_loss
    if (
        loss is None
        or not segment.run.comparable
        or not segment.fresh
        or len(loss) < 4 * SUSTAINED
        or loss.values[0] <= 0
    ):
        return []
    values = loss.values
    begun = [values, values[1:]] if 0 < values[1] < values[0] else [values]
    found: list[Incident] = []
    last = 0
    for i in np.flatnonzero(np.min([np.abs(values / start[0] - 1) for start in begun], axis=0) <= SAME).tolist():
        if i - last < 2 * SUSTAINED:
            continue
        if any(_begins_again(values, start, i) and not _cycle(segment, loss, i, float(start[0])) for start in begun):
            found.append(_incident(segment, loss, i))
            last = i
    return found


def _begins_again(values: Array, start: Array, i: int) -> bool:
    """Whether the loss is back at the first of these records, and falls as it did from there.

    They are those of the log, or those from the second on: how far it fell before that may depend on the first batch.
    """
    learned = bool((values[i - SUSTAINED : i] < LEARNED * start[0]).all())
    return learned and abs(values[i] / start[0] - 1) <= SAME and _falls_as_before(values, start, i)


def _cycle(segment: RunSegment, loss: Column, i: int, first: float) -> bool:
    """Whether only the learning-rate schedule restarted: the loss rises, but not to that of a fresh model."""
    near = warm_restart(segment, int(loss.steps[i - SUSTAINED]), int(loss.steps[min(i + 1, len(loss) - 1)]))
    return near is not None and float(loss.values[i]) < (1 - CYCLE) * first


def _falls_as_before(values: Array, start: Array, i: int) -> bool:
    """Whether the loss falls from i as it did at the start: as far, and not much faster. A spike would fall faster."""
    now, then = values[i : i + SUSTAINED], start[:SUSTAINED][: len(values) - i]
    before = float(np.median(values[i - SUSTAINED : i]))
    if len(now) < 3 or bool((np.abs(now / then - 1) > 2 * SAME).any()) or now.min() < 1.3 * before:
        return False
    if float(np.mean(values[max(i // 2, i - RECENT) : i] >= now.min())) > USUAL:
        return False  # the noise of the curve is as high
    target = before + (float(now.min()) - before) / 3
    took, takes = _until(start[:i], target), _until(values[i:], target)
    return takes >= took / 2 or takes == len(values) - i


def _until(values: Array, target: float) -> int:
    """Number of records before the first at or below the target; all if there is none."""
    reached = np.flatnonzero(values <= target)
    return int(reached[0]) if len(reached) else len(values)


def _incident(segment: RunSegment, loss: Column, i: int) -> Incident:
    before = float(np.median(loss.values[i - SUSTAINED : i]))
    step, now, first = int(loss.steps[i]), float(loss.values[i]), float(loss.values[0])
    counted = segment.run.step_unit != "ordinal"
    text = f"At step {step} the {segment.loss_name} is back at its initial value ({now:.4g}; {first:.4g} at step "
    text += f"{loss.steps[0]}) while the step counter continues: training starts from scratch."
    if not counted:
        text = (
            f"At record {step} the {segment.loss_name} is back at its initial value ({now:.4g}; {first:.4g} at first): "
        )
        text += "training probably begins again in the same file. The log has no step that would show it."
    return Incident(
        condition="Reinitialisation" if counted else "RunRestarted",
        severity="critical" if counted else "info",
        first_step=step,
        last_step=None,
        records=len(loss) - i,
        ratio=now / before if before > 0 else None,
        confidence="certain",
        line=int(loss.lines[i]),
        text=text,
        evidence=(
            f"Median of the five records before: {before:.4g}.",
            "The following records fall like those at the beginning.",
        ),
    )
