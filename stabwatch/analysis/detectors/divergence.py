"""Divergence: the loss rises and does not return, abruptly or slowly."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.alerts.incidents import Confidence, Incident
from stabwatch.analysis.detectors.confidence import confidence_of
from stabwatch.analysis.detectors.excursions import BACK, EXCERPT, Excursion
from stabwatch.analysis.detectors.robust import SUSTAINED, WINDOW, Array, level, rolling_median, scatter
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_eval, is_perplexity

LOST = 0.4
"""A curve that does not turn back has diverged if it is this many levels above its best."""
SLOWLY, SMOOTH, MANY = 0.33, 0.05, 100
"""The same for a smooth curve: its rise, the scatter of its changes in levels, and its fewest records."""
NEAR = 0.7
"""Share of the rise from best to worst at which a curve still counts as not having turned back."""
LONGEST = 50
"""Records without a return. In real logs, the longest spikes that recovered lasted about 40."""
EBBED = 0.1
"""Share of a rise that is left where it fell back, though not yet to its level."""
BOUNDLESS = 1e4
"""A loss that falls below zero by this multiple of its first values has no lower bound; log-likelihoods stay above."""
LATER = 6.0
"""Ratio to its best from which a loss that had halved before is no hump at the start of training."""
EXPLODES = 5.0
"""Ratio of a validation loss to its best from which overfitting is not the likely reason."""
RETURN = 0.75
"""Share of the peak to which an excerpt must have fallen to count as recovering at its end."""
BEYOND, GROWS, LOST_FOREVER = 9.0, 1.5, 100.0
"""Rise in levels of an excerpt that ends rising, the same over three records, and one that is left where it falls back,
from which it diverged."""
FLAT = (6, 0.35)
"""Fewest records before and after a step up whose end is flat, and the span of these relative to the step."""
NATS = 1.5
"""Rise in nats of an excerpt, where the log also has the perplexity: it grew to four and a half times."""
TOGETHER = 6
"""Fewest records of a training whose loss and validation loss rise from the first record to the last."""
BY = 1.1
"""Smallest ratio of the last of them to the first."""
TWICE = 2.0
"""The same where two other losses rise with it, of one record less."""
VALIDATED = 4
"""Fewest validations during a rise that show whether the model became worse."""
BEST = 1.1
"""Ratio of the last of them to the best, up to which it did not."""
LEARNED = 0.9
"""Share of the first loss that the best is below, where a loss that ends above all before it has lost what it had."""
LAST = 2
"""Records at the end that are, in an excerpt; in a longer curve, as many as an excursion has."""
RAGGED = 32
"""Most records of a curve whose falls are compared with its rise."""
FEW = 4
"""Consecutive rises up to the end that count as a trend in an excerpt."""


def diverges(values: Array, e: Excursion, dies: bool) -> bool:
    """Whether an excursion ends the run: it ends at twice the level, or still rises, or is followed by NaN."""
    if e.recovered:
        return False
    if not dies and _returning(values, e):
        return False
    end = values[-3:] if e.stop - e.start >= 5 else values[-1:]
    lost = float(np.median(end)) - e.base
    tail = values[e.start :]
    rising = len(tail) >= FEW and lost >= 0.9 * float(tail.max() - e.base) and bool(tail[-1] >= np.median(tail))
    ebbed = lost < EBBED * float(tail.max() - e.base) and not rising
    return (
        dies
        or lost >= e.scale
        or _stays_above_all(values, e)
        or ((rising or len(tail) > LONGEST) and lost >= LOST * e.scale and not ebbed)
    )


def _stays_above_all(values: Array, e: Excursion) -> bool:
    """Whether the curve is flat from a step to the end, above all that it had been: all is lost."""
    before, tail = values[: e.start], values[e.start :]
    if len(before) < FLAT[0] or len(tail) < FLAT[0] or tail.min() <= before.max():
        return False
    return float(np.ptp(tail)) <= FLAT[1] * float(tail.min() - e.base)


def _returning(values: Array, e: Excursion) -> bool:
    """Whether an excerpt ends soon after the peak, while recovering, or in the first records of the excursion."""
    if len(values) > EXCERPT:
        return False
    down = values[e.peak :]
    left = float(down[-1]) - e.base
    falls = len(down) > BACK and bool((np.diff(down) < 0).all()) and left < RETURN * (float(down[0]) - e.base)
    few = len(values) - e.start < FEW
    over = values[e.start :] - e.base
    far = float(over.min()) >= (EXPLODES - 1) * e.scale
    beyond = BEYOND if len(over) < FEW - 1 else GROWS
    grows = bool((np.diff(values[e.start - 1 :]) > 0).all()) and float(over[-1]) >= beyond * e.scale
    gone = len(over) > 1 and ((far and len(values) >= FEW) or grows)
    return (falls and left < LOST_FOREVER * e.scale) or (few and not gone)


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident: an excursion without end, otherwise a slow rise."""
    loss = segment.finite_loss
    if loss is None or len(loss) < FEW - 1:
        return []
    level_of_zero = (segment.watched and _near_zero(loss.values)) or _from_zero(loss.values)
    for e in segment.excursions:
        if not level_of_zero and diverges(loss.values, e, segment.dies):
            text = (
                f"The {segment.loss_name} diverged from step {loss.steps[e.start]}: from {e.base:.4g} to "
                f"{loss.values[-1]:.4g}" + (", and then to non-finite values." if segment.dies else ".")
            )
            return [_incident(segment, loss, e.start, e.base, text, confidence_of(e.over, e.stop - e.start))]
    if len(loss) < FEW:
        return []
    away = _below(loss.values)
    if away is not None:
        base = float(np.median(np.abs(loss.values[:FEW])))
        text = (
            f"The {segment.loss_name} falls without bound from step {loss.steps[away]}, to {loss.values.min():.4g}. "
            f"Such a loss has no lower bound: for example, the sign of a likelihood or of a discriminator is wrong."
        )
        return [_incident(segment, loss, away, base, text, "likely", down=True)]
    slow = _slow(loss.values, segment.fresh, _is_in_nats(segment, loss)) or _from_the_first(segment, loss)
    slow = slow or ends_high(loss.values)
    if slow is None or level_of_zero:
        return []
    start, best = slow
    text = (
        f"The {segment.loss_name} rises from step {loss.steps[start]}, from its best level, {best:.4g}, to "
        f"{np.median(loss.values[-max(1, len(loss) // 20) :]):.4g} at the end."
    )
    return [_incident(segment, loss, start, best, text, confidence_of(2.0, len(loss) - start))]


def _from_zero(values: Array) -> bool:
    """Whether a loss begins at exactly 0 and stays small: it has nothing to lose.

    That of a policy begins so, a penalty, and a distance to what the model was.
    """
    return bool(values[0] == 0) and float(np.abs(values).max()) < 1.0


def _near_zero(values: Array) -> bool:
    """Whether a loss that was negative ends no further above zero than it had been below: a policy gradient may."""
    least = float(values.min())
    return least < 0 and float(np.median(values[-3:])) < -least


def _incident(
    segment: RunSegment, loss: Column, start: int, base: float, text: str, confidence: Confidence, down: bool = False
) -> Incident:
    worst = start + int((np.argmin if down else np.argmax)(loss.values[start:]))
    evaluated = loss.role == "eval_loss"
    explodes = base > 0 and float(loss.values[-1]) >= EXPLODES * base
    harder = not evaluated and not down and _validation_falls(segment, loss, start)
    grave = segment.must_fall and (not evaluated or explodes) and not harder
    if harder:
        text += (
            " The validation loss falls meanwhile, so the data or the objective became harder, and not the model worse."
        )
    if evaluated and explodes:
        text += " The log has no training loss; overfitting seldom goes that far."
    elif evaluated:
        text += " The log has no training loss, so this may be overfitting."
    elif not segment.must_fall and not harder:
        text += " In reinforcement learning and adversarial training a rising loss need not be bad."
    text += how_sure(len(loss), confidence)
    return Incident(
        condition="LossDivergence",
        severity="info" if not grave else "warning" if evaluated else "critical",
        first_step=int(loss.steps[start]),
        last_step=None,
        records=len(loss) - start,
        ratio=float(loss.values[worst]) / base if base > 0 else None,
        confidence=confidence if grave else "possible",
        line=int(loss.lines[start]),
        text=text,
        evidence=(
            f"Before: {base:.4g}. Worst: {loss.values[worst]:.4g} at step {loss.steps[worst]}.",
            f"{number_of(len(loss) - start)} up to the end of the log without a return.",
        ),
    )


def _validation_falls(segment: RunSegment, loss: Column, start: int) -> bool:
    """Whether the validation loss falls during a rise of the training loss, up to its end."""
    evaluated = segment.of("eval_loss")
    if evaluated is None or segment.dies or not np.isfinite(evaluated.values).all():
        return False
    during = evaluated.steps >= loss.steps[start]
    values, before = evaluated.values[during], evaluated.values[~during]
    if len(before) and len(values) and values[0] > BEST * before[-1]:
        return False  # it jumped too, and falls back from there
    left = len(loss) - int(np.searchsorted(loss.steps, evaluated.steps[-1])) if len(evaluated) else 0
    late = left <= (len(loss) - start) // VALIDATED
    return len(values) >= VALIDATED and late and bool(0 < values[-1] <= BEST * values.min() and values[-1] < values[0])


def _below(values: Array) -> int | None:
    """Where a loss starts to fall without bound, if it does up to the end."""
    size = max(float(np.median(np.abs(values[:FEW]))), 1.0)
    if len(values) < 2 * FEW or float(np.median(values[-max(FEW, len(values) // 10) :])) > -BOUNDLESS * size:
        return None
    outside = values < -10 * size
    if not outside.any():  # numbers so large that ten times as much is none
        return None
    last = int(np.flatnonzero(outside)[-1])  # one record after it may be back
    inside = np.flatnonzero(~outside[:last])
    return int(inside[-1]) + 1 if len(inside) else 0


def _is_in_nats(segment: RunSegment, loss: Column) -> bool:
    """Whether the loss is a logarithm: the log has the perplexity of the same split beside it."""
    beside = [c for c in segment.columns if is_perplexity(c.name) and len(c)]
    return not is_perplexity(loss.name) and any(is_eval(c.name) == (loss.role == "eval_loss") for c in beside)


def _from_the_first(segment: RunSegment, loss: Column) -> tuple[int, float] | None:
    """The same where a loss rises in every record with its validation loss, or doubles with two others or in epochs."""
    if not segment.fresh or loss.role != "loss":
        return None
    other = segment.of("eval_loss")
    beside = [c for c in segment.columns if c.role == "component" and len(c) == len(loss)]
    with_validation = other is not None and _climbs(loss.values, TOGETHER, BY) and _climbs(other.values, TOGETHER, BY)
    by_epochs = segment.run.step_unit == "epoch" and _climbs(loss.values, TOGETHER - 1, TWICE)
    with_others = len(beside) > 1 and all(_climbs(c.values, TOGETHER - 1, TWICE) for c in (loss, *beside))
    return (1, float(loss.values[0])) if with_validation or with_others or by_epochs else None


def _climbs(values: Array, least: int, by: float) -> bool:
    """Whether a curve of so many records rises in each, by this ratio in all."""
    return len(values) >= least and 0 < by * values[0] <= values[-1] and bool((np.diff(values) > 0).all())


def _slow(values: Array, fresh: bool, nats: bool) -> tuple[int, float] | None:
    """Start of a rise that lasts to the end of the curve, and the level before it."""
    short = _monotone(values, fresh, nats)
    if short is not None:
        return short
    width = min(WINDOW, max(3, len(values) // 20)) | 1
    smooth = rolling_median(values, width)
    if len(smooth) < 2 * FEW:
        return None
    k = int(np.argmin(smooth))
    tail, best = smooth[k:], float(smooth[k])
    if len(tail) < max(FEW, width // 2):
        return None
    lost = float(np.median(tail[-max(1, len(tail) // 10) :])) - best
    if len(values) <= RAGGED and -float(np.diff(values[k:]).clip(max=0).sum()) > lost:
        return None  # a few records that go down by more than they rise
    size = level(smooth[max(0, k - width) : k + width])
    turned = lost < NEAR * float(tail.max() - best) and lost < size
    smoothly = len(values) >= MANY and scatter(np.diff(values)) <= SMOOTH * best
    if (
        lost < (SLOWLY if smoothly else LOST) * size
        or turned
        or lost < _wander(smooth, width, len(tail))
        or not _apart(values, k, width, len(tail))
    ):
        return None
    below = np.flatnonzero(tail <= best + 0.03 * lost)
    return k + int(below[-1]) + 1 + width // 2, best


def ends_high(values: Array, times: float = LATER) -> tuple[int, float] | None:
    """Start of a rise, and the best before it, where something was learned and the end is above all records before.

    Between the two the curve may go up and down.
    """
    if len(values) < FEW or values.min() <= 0:
        return None
    k, last = int(np.argmin(values)), LAST if len(values) <= EXCERPT else SUSTAINED
    before, best, end = values[: k + 1], float(values[k]), values[-last:]
    if k < LAST or len(values) - 1 - k <= last or best > LEARNED * float(values[0]):
        return None
    if float(end.min()) < max(times * best, float(before.max())) or float(end[-1]) < float(values.max()) / 2:
        return None
    below = np.flatnonzero(values[k:] <= TWICE * best)
    return k + int(below[-1]) + 1, best


def _apart(values: Array, k: int, width: int, length: int) -> bool:
    """Whether the records at the end differ from those at the best by more than their noise."""
    end = values[-max(SUSTAINED, length // 4) :]
    best = values[max(0, k - FEW) : k + width]
    return float(np.quantile(end, 0.2)) > float(np.quantile(best, 0.9))


def _wander(smooth: Array, width: int, length: int) -> float:
    """Distance that a random walk with the changes of this curve covers in some records."""
    changes = smooth[width:] - smooth[:-width]
    return scatter(changes) * math.sqrt(length / width) if len(changes) >= 8 else 0.0


def _monotone(values: Array, fresh: bool, nats: bool) -> tuple[int, float] | None:
    """The same for an excerpt of few records: each is above the one before."""
    down = np.flatnonzero(np.diff(values) <= 0)
    start = int(down[-1]) + 1 if len(down) else 0
    rises = len(values) - 1 - start
    best = float(values[start])
    size = level(values[: start + 1])
    if rises < (FEW - 1 if len(values) <= 3 * FEW else 2 * FEW) or size <= 0:
        return None
    learned = start >= FEW - 1 and best <= values[0] / 2 and values[-1] >= LATER * best
    long = len(values) >= 10 or (start > FEW and values[-1] >= (1 + LOST) * values[0])
    if fresh and not learned and (not long or values[-1] <= values[0]):
        return None  # the hump at the start of training
    lost = float(values[-1]) - best
    if lost < min(LOST * size, NATS if nats else math.inf) or best > float(values.min()) + 0.1 * size:
        return None
    left = np.flatnonzero(values[start:] > best + 0.1 * lost)
    return (start + int(left[0]), best) if len(left) else None
