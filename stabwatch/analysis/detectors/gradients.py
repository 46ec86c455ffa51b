"""The gradient norm: explosions over many records, and single outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.confidence import confidence_of
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.excursions import BASE, EXCERPT
from stabwatch.analysis.detectors.robust import SUSTAINED, WINDOW, Array, past_median, spans
from stabwatch.analysis.detectors.segments import RunSegment, picked
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column

FAR = 100.0
"""Multiple of the usual norm, at three records in a row."""
HIGH = 10.0
"""Multiple of the usual norm, at five records in a row, as in the live rule."""
STEEP = 3.0
"""Ratio of each record at the end of an excerpt to the one before it."""
CLIMBS = 4
"""Fewest such records, the one before the rise included."""
BEYOND = 10.0
"""Smallest norm at the end of such a rise."""
UNLEARNED, LEARNED = 0.98, 0.9
"""Shares of its first value above which a loss has not fallen yet, and below which it has."""
ODD = 5.0
"""Multiple of the usual norm from which single records are reported."""
OFTEN = 5
"""Other places with norms half as far above the usual, or farther, from which on a rise that ends is one of them."""


def find(segment: RunSegment) -> list[Incident]:
    """Explosions one by one; all isolated records as one incident."""
    norm = segment.of("grad_norm")
    if norm is None:
        return []
    norm = picked(norm, ~np.isnan(norm.values) & (norm.values > 0))
    values = norm.values
    start = _climb(values)
    if start is not None:
        return [_climbing(segment, norm, start)]
    if len(norm) < 5:
        return []
    with np.errstate(invalid="ignore"):
        ratio = np.nan_to_num(values / past_median(values), nan=1.0, posinf=np.inf)
    first = BASE if segment.fresh else 2
    ratio[:first] = 1.0
    found, told, done = [], list[tuple[int, int]](), first
    for start, stop in _sustained(ratio):
        if start < done:
            continue
        base = float(np.median(values[max(0, start - WINDOW) : start]))
        stop = done = _end(values, stop, base)
        if stop == len(values) or not _is_common(ratio, start, stop):
            found.append(_explosion(segment, norm, start, stop, base))
            told.append((start, stop))
    for start, stop in told:
        ratio[start:stop] = 1.0
    for excursion in segment.excursions:  # reported by the detector of spikes
        loss = segment.finite_loss
        assert loss is not None
        inside = (norm.steps >= loss.steps[excursion.start]) & (norm.steps <= loss.steps[excursion.stop - 1])
        ratio[inside] = 1.0
    return [*found, *_outliers(norm, ratio)]


def _climb(values: Array) -> int | None:
    """Index of the first record of a steep rise up to the end of an excerpt, a hundredfold in all."""
    if not CLIMBS <= len(values) <= EXCERPT or not np.isfinite(values).all():
        return None
    slow = np.flatnonzero(values[1:] < STEEP * values[:-1])
    base = int(slow[-1]) + 1 if len(slow) else 0
    if len(values) - base < CLIMBS or values[-1] < max(FAR * float(values[: base + 1].max()), BEYOND):
        return None
    return base + 1


def _climbing(segment: RunSegment, norm: Column, start: int) -> Incident:
    base, last = float(norm.values[start - 1]), float(norm.values[-1])
    text = (
        f"The gradient norm explodes from step {norm.steps[start]} on, from {base:.3g} to {last:.3g} at the end, "
        f"at least threefold in each record." + how_sure(len(norm), "likely")
    )
    evidence = (_of_loss(segment, int(norm.steps[start]), int(norm.steps[-1])),)
    return to_the_end(norm, start, text, condition="GradientNormExplosion", ratio=last / base, evidence=evidence)


def _sustained(ratio: Array) -> list[tuple[int, int]]:
    far = [(a, b) for a, b in spans(ratio > FAR) if b - a >= 3]
    high = [(a, b) for a, b in spans(ratio > HIGH) if b - a >= SUSTAINED]
    high += [(a, b) for a, b in spans(ratio > HIGH) if any(a <= c < b for c, _ in far)]
    return sorted(set(high))


def _is_common(ratio: Array, start: int, stop: int) -> bool:
    """Does the norm rise about as far in many other places of the curve, if only for a record or two?"""
    half = float(ratio[start:stop].max()) / 2
    others = [(a, b) for a, b in spans(ratio > ODD) if b <= start or a >= stop]
    return sum(float(ratio[a:b].max()) >= half for a, b in others) >= OFTEN


def _end(values: Array, stop: int, base: float) -> int:
    """End of an explosion: before five records in a row that are back, or before those at the end of the log."""
    calm = values <= HIGH * base
    for a, b in spans(calm):
        if b > stop and (b - max(a, stop) >= SUSTAINED or b == len(values)):
            return max(a, stop)
    return len(values)


def _explosion(segment: RunSegment, norm: Column, start: int, stop: int, base: float) -> Incident:
    inside = norm.values[start:stop]
    worst, infinite = float(inside.max()), int(np.isinf(inside).sum())
    lasts = stop >= len(norm)
    finite = inside[np.isfinite(inside)]
    largest = float(finite.max()) if len(finite) else worst
    course = f"for {number_of(stop - start)}{' up to the end' if lasts else ''}"
    course += f", infinite in {infinite}" if infinite else ""
    text = f"The gradient norm explodes at step {norm.steps[start]}, from {base:.3g} to {largest:.3g}, {course}."
    begins = not infinite and _begins_to_learn(segment, int(norm.steps[start]))
    if begins:
        text += " The loss had not fallen before, and fell afterwards: learning began there."
    return Incident(
        condition="GradientNormExplosion",
        severity="info" if begins else "warning",
        first_step=int(norm.steps[start]),
        last_step=None if lasts else int(norm.steps[stop - 1]),
        records=stop - start,
        ratio=worst / base,
        confidence=confidence_of(largest / base / HIGH, stop - start),
        line=int(norm.lines[start]),
        text=text,
        evidence=(
            f"Median of the {number_of(min(start, WINDOW))} before: {base:.3g}.",
            _of_loss(segment, int(norm.steps[start]), int(norm.steps[stop - 1])),
        ),
    )


def _begins_to_learn(segment: RunSegment, step: int) -> bool:
    """Whether the loss stood still before a step, at the start of training, and fell afterwards."""
    loss = segment.finite_loss
    if loss is None or not segment.fresh or not segment.must_fall or len(loss) < WINDOW or loss.values[0] <= 0:
        return False
    before, after = loss.values[loss.steps < step], loss.values[loss.steps >= step]
    still = len(before) > 0 and float(before.min()) >= UNLEARNED * loss.values[0]
    return still and len(after) > 0 and float(np.median(after[-WINDOW:])) <= LEARNED * loss.values[0]


def _of_loss(segment: RunSegment, first: int, last: int) -> str:
    loss = segment.finite_loss
    if loss is None:
        return "This log has no loss."
    before, inside = (
        loss.values[loss.steps < first][-WINDOW:],
        loss.values[(loss.steps >= first) & (loss.steps <= last)],
    )
    if not len(before) or not len(inside):
        return "The loss was not finite during that time."
    return f"During that time the {segment.loss_name} went from {np.median(before):.4g} to at most {inside.max():.4g}."


def _outliers(norm: Column, ratio: Array) -> list[Incident]:
    places = np.flatnonzero(ratio > ODD)
    if not len(places):
        return []
    worst = int(places[np.argmax(ratio[places])])
    return [
        Incident(
            condition="GradientNormOutliers",
            severity="info",
            first_step=int(norm.steps[places[0]]),
            last_step=int(norm.steps[places[-1]]),
            records=len(places),
            ratio=float(ratio[worst]),
            confidence="likely",
            line=int(norm.lines[places[0]]),
            text=(
                f"In {_where(places)} the gradient norm is far above the usual, {norm.values[worst]:.3g} at step "
                f"{norm.steps[worst]} ({ratio[worst]:.3g} times) at most, {_afterwards(places, norm)}"
            ),
            evidence=(f"Steps: {', '.join(str(norm.steps[i]) for i in places[:12])}{' ...' * (len(places) > 12)}",),
        )
    ]


def _where(places: NDArray[np.intp]) -> str:
    """'one record', '3 single records', '5 records, up to 3 of them in a row,'."""
    longest = max(len(run) for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1))
    if len(places) == 1:
        return "one record"
    if longest == 1:
        return f"{len(places)} single records"
    return (
        f"{len(places)} records in a row"
        if longest == len(places)
        else f"{len(places)} records, up to {longest} of them in a row,"
    )


def _afterwards(places: NDArray[np.intp], norm: Column) -> str:
    """What follows the records, as far as the log goes."""
    if places[-1] == len(norm) - 1:
        return "and the log ends with it: whether the norm returns is not known."
    return "and normal after that: common, and harmless if gradients are clipped."
