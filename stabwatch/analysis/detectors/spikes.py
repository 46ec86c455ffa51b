"""Loss spikes, single outliers, level shifts, and the initial hump of training without warm-up."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors import cycles, validated
from stabwatch.analysis.detectors.confidence import confidence_of
from stabwatch.analysis.detectors.divergence import EXPLODES, diverges
from stabwatch.analysis.detectors.excursions import BASE, EXCERPT, FIRST, Excursion, outliers
from stabwatch.analysis.detectors.learning_rate import warm_restart
from stabwatch.analysis.detectors.robust import SUSTAINED, WINDOW, Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column

FEWEST = 4
"""Records of a log below which nothing about a spike is likely."""
HUMP = 1.5
"""Ratio to the first loss from which an initial hump is reported."""
EARLY = 0.25
"""Share of the whole descent in logarithms. An excursion before it belongs to the beginning."""
MANY = 1e4
"""Number from which only its first digits are printed."""
TALL, STEEP = 10.0, 100.0
"""Ratios of the loss and of the gradient norm of one record to those of all others of an excerpt."""
LONG, LOWER, TWICE = 32, 0.95, 2.0
"""Fewest records of a rise whose gradient norms are compared with those before it, the ratio of their medians, and that
of the largest to the median before."""
SHIFT = 0.4
"""A lasting shift by this many levels is a warning. A smaller one may be other data or another batch size."""


def find(segment: RunSegment) -> list[Incident]:
    """All rises of the loss that do not end the run."""
    loss = segment.finite_loss
    if loss is None or not len(loss):
        return []
    rises = segment.excursions or _with_the_norm(segment, loss)
    taken = [(e.start, e.stop) for e in rises]
    seen = [e for e in validated.rises(segment, loss) if not any(a < e.stop and e.start < b for a, b in taken)]
    rises = [*rises, *seen]
    found = [_spike(segment, loss, e) for e in rises if not diverges(loss.values, e, segment.dies)]
    if (evaluated := validated.evaluated_twice(segment, loss)) is not None:
        beside, jump = evaluated
        found += [_spike(segment, beside, e) for e in validated.rises(segment, beside, jump)]
    return [*([] if seen else _hump(segment, loss)), *found, *_outliers(segment, loss, seen)]


def _with_the_norm(segment: RunSegment, loss: Column) -> list[Excursion]:
    """The only record of an excerpt whose loss and whose gradient norm are both far above all others."""
    norm = segment.of("grad_norm")
    if norm is None or segment.fresh or not 3 <= len(loss) <= EXCERPT or loss.values.min() < 0:
        return []
    i = int(np.argmax(loss.values))
    beside = norm.values[norm.steps == loss.steps[i]]
    rest, others = np.delete(loss.values, i), norm.values[norm.steps != loss.steps[i]]
    if not 0 < i < len(loss) - 1 or len(beside) != 1 or len(others) < 2 or not np.isfinite(others).all():
        return []
    if loss.values[i] < TALL * rest.max() or not beside[0] >= STEEP * others.max() > 0:
        return []
    base = float(np.median(rest))
    return [Excursion(i, i + 1, i, base, base, float(loss.values[i]) / (TALL * float(rest.max())), recovered=True)]


def _spike(segment: RunSegment, loss: Column, e: Excursion) -> Incident:
    peak, points = float(loss.values[e.peak]), e.stop - e.start
    onset, name = int(loss.steps[e.start]), segment.loss_name
    name = f"evaluation's loss ('{loss.name}')" if loss.role == "component" else name
    after = loss.values[e.start + WINDOW :]
    shifted = not e.recovered and len(after) >= WINDOW
    cycle = _cycle(segment, loss, e)
    height = float(np.median(after)) - e.base if shifted else peak - e.base
    if shifted:
        text = (
            f"The {name} moved from {e.base:.4g} to a level of {e.base + height:.4g} at step {onset} and stayed there."
        )
    elif e.recovered:
        text = (
            f"The {name} spiked at step {onset}, from {e.base:.4g} to {peak:.4g}, and was back after "
            f"{number_of(points)}, at step {loss.steps[min(e.stop, len(loss) - 1)]}."
        )
    elif points == 1:
        text = f"The {name} jumped from {e.base:.4g} to {peak:.4g} at step {onset}, in the last record of the log."
    else:
        text = (
            f"The {name} spiked at step {onset}, from {e.base:.4g} to {peak:.4g}, and had not recovered "
            f"{number_of(points - 1)} later, where the log ends."
        )
    sure = confidence_of(e.over, points) if len(loss) >= FEWEST else "possible"
    text += "" if e.recovered else how_sure(len(loss), sure)
    if cycle is not None:
        text += f" The learning rate was raised again at step {cycle}, as in a schedule with warm restarts."
    every = cycles.period(loss.values, e, segment.fresh) if cycle is None else None
    if every is not None:
        text += f" It does so every {every} records or more, and is as low again each time, as with warm restarts."
    again = every is None and cycles.is_second(loss.values, e, segment.fresh)
    if again:
        text += (
            " It fell back as slowly as it had fallen before, to less than its best: as when a schedule begins again."
        )
    calm = e.recovered and points >= LONG and peak <= loss.values[0] and _gradients_are_lower(segment, loss, e)
    if calm:
        text += (
            " The gradient norm is lower meanwhile than before, and never twice as high: as when the learning rate is "
            "raised or the data change, and not as in an instability."
        )
    added = _new_terms(segment, onset)
    if added:
        text += f" From there on the log has {added} too: the loss has another term."
    early = segment.fresh and e.recovered and peak <= loss.values[0] and _unlearned(loss.values, e)
    if early:
        text += " That was early: most of what was learned came later."
    overfits = loss.role == "eval_loss" and not e.recovered and peak < EXPLODES * e.base
    grave = (
        segment.must_fall
        and cycle is None
        and every is None
        and not again
        and not calm
        and not added
        and not early
        and not overfits
        and (not shifted or height >= SHIFT * e.scale)
    )
    times = f"{e.over:.1f}" if e.over < MANY else f"{e.over:.3g}"
    return Incident(
        condition="LossShift" if shifted else "LossSpike",
        severity="warning" if grave else "info",
        first_step=onset,
        last_step=int(loss.steps[e.stop - 1]) if e.recovered else None,
        records=points,
        ratio=peak / e.base if e.base > 0 else None,
        confidence=sure,
        line=int(loss.lines[e.start]),
        signal=loss.name if loss.role == "component" else "",
        text=text,
        evidence=(
            f"Median of the {number_of(min(e.start, WINDOW))} before: {e.base:.4g}.",
            f"Worst: {peak:.4g} at step {loss.steps[e.peak]}, {times} times what counts as a spike here.",
            *_gradient(segment, onset, int(loss.steps[e.stop - 1])),
        ),
    )


def _new_terms(segment: RunSegment, onset: int) -> str:
    """Names of the parts of the loss that are printed from a step on, and never before."""
    begun = [c for c in segment.columns if c.role == "component" and len(c) and int(c.steps[0]) == onset]
    known = len(segment.steps) > 0 and onset > int(segment.steps[0])
    return ", ".join(f"'{c.name}'" for c in begun[:2]) if known and begun else ""


def _unlearned(values: Array, e: Excursion) -> bool:
    """Whether most of the descent, in logarithms, came later: a burn-in, where the loss still changes strongly."""
    least = float(values[e.stop :].min(initial=math.inf))
    if not 0 < least < e.base <= values[0] or e.start > FIRST:
        return False
    return math.log(values[0] / e.base) < EARLY * math.log(values[0] / least)


def _cycle(segment: RunSegment, loss: Column, e: Excursion) -> int | None:
    """The step of the warm restart that explains a rise of less than the level."""
    if float(loss.values[e.peak]) - e.base >= e.scale:
        return None
    return warm_restart(segment, int(loss.steps[max(e.start - 5, 0)]), int(loss.steps[min(e.start + 5, e.peak)]))


def _gradients_are_lower(segment: RunSegment, loss: Column, e: Excursion) -> bool:
    """Whether the gradient norm is lower in a long rise than before it, and nowhere much higher."""
    norm, first, stop = segment.of("grad_norm"), loss.steps[e.start], loss.steps[e.stop - 1]
    if norm is None:
        return False
    before = norm.values[norm.steps < first][-WINDOW:]
    inside = norm.values[(norm.steps >= first) & (norm.steps <= stop)]
    if min(len(before), len(inside)) < LONG or not np.isfinite(before).all() or not np.isfinite(inside).all():
        return False
    usual = float(np.median(before))
    return float(np.median(inside)) <= LOWER * usual and float(inside.max()) <= TWICE * usual


def _gradient(segment: RunSegment, first: int, last: int) -> tuple[str, ...]:
    """The gradient norm during a spike."""
    norm = segment.of("grad_norm")
    if norm is None:
        return ()
    before = norm.values[norm.steps < first][-WINDOW:]
    inside = norm.values[(norm.steps >= first) & (norm.steps <= last)]
    if not np.isfinite(before).any() or not np.isfinite(inside).any() or not before.any():
        return ()
    return (
        f"The gradient norm was {np.nanmedian(before):.3g} before and at most {np.nanmax(inside):.3g} in the spike.",
    )


def _hump(segment: RunSegment, loss: Column) -> list[Incident]:
    """A loss far above its first value before anything was learned."""
    values = loss.values
    if not segment.fresh or len(values) < 4 or values.min() < 0:
        return []
    above = values > HUMP * values[0]
    if not above[1 : BASE + 1].any():
        return []
    start = int(np.argmax(above))
    calm = np.flatnonzero(~above[start:])
    if not len(calm):
        return []  # not a hump: other detectors find it
    points = int(calm[0])
    if (
        len(calm) < len(values) - start - points
        and values[start + points :].max() > values[start : start + points].max() / 2
    ):
        return []  # records of several kinds alternate
    peak = start + int(np.argmax(values[start : start + points]))
    text = f"The {segment.loss_name} rose from {values[0]:.4g} to {values[peak]:.4g} in the first records."
    return [
        Incident(
            condition="EarlyLossHump",
            severity="info",
            first_step=int(loss.steps[start]),
            last_step=int(loss.steps[start + points - 1]),
            records=points,
            ratio=float(values[peak] / values[0]),
            confidence="likely",
            line=int(loss.lines[start]),
            text=f"{text} That is usual without a warm-up, and while an fp16 scaler searches for its scale.",
        )
    ]


def _outliers(segment: RunSegment, loss: Column, seen: list[Excursion]) -> list[Incident]:
    taken = [*segment.excursions, *seen]
    found = outliers(loss.values, segment.reference, taken) if segment.reference is not None else []
    places = np.array(found, dtype=np.intp)
    runs = [run for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(run)]
    long = [_high(segment, loss, run) for run in runs if len(run) >= SUSTAINED]
    short = [run for run in runs if len(run) < SUSTAINED]
    return [*long, *([_odd_batches(segment, loss, short)] if short else [])]


def _high(segment: RunSegment, loss: Column, run: NDArray[np.intp]) -> Incident:
    """Records in a row far above the level that the noise of the curve may explain."""
    first, last = int(run[0]), int(run[-1])
    worst, usual = _worst(segment, loss, run)
    ends = last == len(loss) - 1
    return Incident(
        condition="LossSpike",
        severity="info",
        first_step=int(loss.steps[first]),
        last_step=None if ends else int(loss.steps[last]),
        records=len(run),
        ratio=float(loss.values[worst]) / usual if usual > 0 else None,
        confidence="possible",
        line=int(loss.lines[first]),
        text=(
            f"The {segment.loss_name} is far above its usual level in {number_of(len(run))} in a row, steps "
            f"{loss.steps[first]} to {loss.steps[last]}: {loss.values[worst]:.4g} at most, where {usual:.4g} is usual. "
            f"The curve is as high elsewhere, so this may be its noise."
        ),
    )


def _worst(segment: RunSegment, loss: Column, places: NDArray[np.intp]) -> tuple[int, float]:
    """The highest of some records, and the level before it."""
    worst = max(places.tolist(), key=lambda i: float(loss.values[i]))
    assert segment.reference is not None, "outliers are judged by it"
    return worst, float(segment.reference.base[worst])


def _odd_batches(segment: RunSegment, loss: Column, runs: list[NDArray[np.intp]]) -> Incident:
    """Records, at most four in a row, far above their neighbours."""
    places = np.concatenate(runs)
    worst, usual = _worst(segment, loss, places)
    longest = max(map(len, runs))
    if longest == 1:
        what = "One record is" if len(places) == 1 else f"{len(places)} single records are"
    else:
        what = f"{len(places)} records, {f'up to {longest} of them ' if len(runs) > 1 else ''}in a row, are"
    text = (
        f"{what} far above {'its' if len(places) == 1 else 'their'} neighbours, the worst {loss.values[worst]:.4g} "
        f"where {usual:.4g} is usual, at step {loss.steps[worst]}: unusual batches or heavy-tailed noise, not an "
        f"instability."
    )
    if places[-1] == len(loss) - 1:
        text = text.removesuffix(", not an instability.") + ", or the beginning of a rise: the log ends there."
    return Incident(
        condition="LossOutliers",
        severity="info",
        first_step=int(loss.steps[places[0]]),
        last_step=int(loss.steps[places[-1]]),
        records=len(places),
        ratio=float(loss.values[worst]) / usual if usual > 0 else None,
        confidence="likely",
        line=int(loss.lines[places[0]]),
        text=text,
        evidence=(f"Steps: {', '.join(str(loss.steps[i]) for i in places[:12])}{' ...' * (len(places) > 12)}",),
    )
