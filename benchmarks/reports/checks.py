"""Whether a fault shows, and whether a run learns, from what the loop itself printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.reports.case import Check, Outcome

SMOOTH = 8
"""Steps whose median stands for the loss of one."""
LATE = 20
PART = 0.1
"""Part of what the twin learns by which a loss must be above the twin's."""


def hurt_step(broken: Sequence[float], twin: Sequence[float], fault: int = 0) -> int | None:
    """First step from which the loss is above the twin's for good, or is not finite; None if it never is.

    Above: the median of eight steps, by a tenth of what the twin learns. A fault that comes after step `LATE` may heal:
    it counts from the first such step on. Hindsight: nobody could say it earlier from the loss alone.
    """
    bad = next((step for step, loss in enumerate(broken) if not math.isfinite(loss)), None)
    end = min(len(broken), len(twin)) if bad is None else min(bad, len(twin))
    if not end:
        return bad
    smooth, other = ([median(x[max(0, i - SMOOTH + 1) : i + 1]) for i in range(end)] for x in (broken, twin))
    gap = max(PART * abs(other[0] - other[-1]), 1e-9)
    start = None
    for step in range(end):
        if smooth[step] <= other[step] + gap or step < fault:
            start = start if fault > LATE else None
        elif start is None:
            start = step
    return bad if start is None else start


def loss_hurt(broken: Outcome, twin: Outcome) -> bool:
    """The loss stays above the twin's to the end, and the twin learns."""
    return hurt_step(broken.losses, twin.losses) is not None and twin.final() < twin.first()


def not_finite(broken: Outcome, twin: Outcome) -> bool:
    """The broken run ends in NaN or infinity, its twin does not."""
    return not math.isfinite(broken.final()) and math.isfinite(twin.final())


def fact(name: str, broken: tuple[float, float], twin: tuple[float, float]) -> Check:
    """The final value of a fact lies between two numbers in the broken run, and between two others in the twin."""

    def check(bad: Outcome, good: Outcome) -> bool:
        return broken[0] <= bad.final(name) <= broken[1] and twin[0] <= good.final(name) <= twin[1]

    return check


def all_of(*checks: Check) -> Check:
    """Every one of several checks."""
    return lambda broken, twin: all(check(broken, twin) for check in checks)


def falls(to: float, name: str = "loss") -> Callable[[Outcome], bool]:
    """The final loss (or fact) is at most `to` times the first."""
    return lambda run: run.final(name) <= to * run.first(name)


def reaches(name: str, least: float) -> Callable[[Outcome], bool]:
    """The final value of a fact is at least `least`, and more than at the start."""
    return lambda run: run.final(name) >= least and run.final(name) > run.first(name)
