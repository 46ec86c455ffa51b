"""Spikes in curves with too few records to measure noise: a jump above all records near it, and the recovery.

Between two records of such a log (an evaluation every thousand steps, lines pasted into an issue) there may be
hundreds of steps. So one record may represent a whole spike, and the next ones its recovery.
"""

from __future__ import annotations

import sys

import numpy as np

from stabwatch.analysis.detectors.excursions import EXCERPT, Excursion, is_noise
from stabwatch.analysis.detectors.robust import Array, scatter

MOST = 200
"""Most records; longer curves have a measurable scatter."""
JUMP = 1.5
"""Ratio of a jump to the highest record just before."""
STILL = 1.1
"""Ratio to the same that the record after the jump still exceeds."""
EBB = (0.25, 0.6)
"""Share of a jump that remains one record later. After unusual batches it is less, or nearly all."""
FALLS = 3
"""Consecutive falling records that distinguish a recovery from noise."""
SLOW_FALLS, SLOW_EBB, SLOW_JUMP = 4, 0.9, 2.0
"""The same, the share that remains one record later, and the jump, of a recovery that is slow."""
LOCAL, FEWEST_NEAR, FALLING = 9, 4, 0.75
"""Records before a jump that show how rough a curve is on its descent, fewest changes between them, and the share of
these that fall."""
CLEAR = 3.0
"""Ratio to the only record before a spike from which it may go up and down on its way."""
NEAR = 3
"""Records before a jump with which it is compared."""
LONE = 4.0
"""Ratio of a single record of an excerpt to every other, from which it is told."""
ALIKE = 2.0
"""Largest ratio among those others."""
BEYOND = 1e4
"""The same where the others are not alike."""
OTHERS = 4
"""Fewest of them."""
LAST = 100.0
"""Ratio of the last record to every other, from which it is told."""
CALM = 5.0
"""Largest ratio among those others, after the first half."""
SHARE = 0.05
"""Smallest jump as a share of the progress so far, for small losses."""
ROUGH = 12.0
"""Smallest jump in scatters of the differences of neighbours."""
RELAPSE = 0.5
"""Share of the first loss. A curve that was below it and then exceeds the first loss has lost all progress."""
ELSEWHERE = 0.7
"""Share, in logarithms, of such a rise from which another one says that it is noise."""
LEAST = 0.01
"""Share of the first loss that stands for a base of 0 in a ratio."""
FIRST = 8
"""Records at the start of training whose jump may have no calm level before it."""
STAYS = 1.3
"""Ratio of every later record to the highest one before an explosion: it never comes back."""
GONE = 20.0
"""Ratio to the highest record before an explosion that no first steps without a warm-up end at."""
GROWS = 2.0
"""The same for the records at the end."""
ALONE = 8.0
"""The same, if there is only one record before the explosion, or only one after."""
ONLY_TWO = 12.0
"""The same for a log of two records."""
MANY, BY = 7, 4.0
"""Fewest records after one alone, and the same ratio then."""
LEVEL, STEP, WIDTH, KEPT = 10, 1.6, 0.25, 0.97
"""Fewest records after one alone that keep a level, the same ratio then, and of these records the largest scatter
relative to that step, and the least ratio of their last third to the one before."""
AGREES = 0.5
"""Largest spread of the records before an explosion, relative to the lowest."""
DESCENT = 3.0
"""The same ratio as `GROWS` where the records before fall from one to the next."""


def explosion(values: Array) -> list[Excursion]:
    """The explosion within the first records of a training, from which it never returns; at most one.

    values: (n,), finite. A training without a warm-up rises for some records too, but falls below its beginning later.
    """
    if len(values) < 2 or values[0] == 0:
        return []
    least = float(values.min())
    shift = max(abs(float(values[0])), -least) - least if least < 0 else 0.0  # so that a ratio is one of sizes
    values = values + shift
    end = float(np.median(values[-3:])) if len(values) > 2 else float(values[1]) * ALONE / ONLY_TWO
    for i in range(1, min(FIRST, len(values))):
        before, after = values[:i], values[i:]
        top, low = float(before.max()), float(before.min())
        few = i == 1 or len(after) == 1
        agree, falls = top - low <= AGREES * low, i > 1 and bool((np.diff(before) < 0).all())
        few = few or (i == 2 and not agree)
        grows = _from_one(after, top) if i == 1 else ALONE if few else GROWS if agree else DESCENT
        if not (agree or falls) or after.min() < STAYS * top or min(end, float(after[-1])) < grows * top:
            continue
        if _ebbs(after, top):
            return []
        base = float(np.median(before))
        peak = i + int(np.argmax(after))
        while i < peak and values[i] < CALM * top and values[i + 1] >= LAST * values[i]:
            i += 1  # a small rise just before
        scale = min(base, end - base)
        return [Excursion(i, len(values), peak, base - shift, scale, float(values[peak] / base) / GROWS, False)]
    return []


def _from_one(after: Array, first: float) -> float:
    """The ratio to the first record from which those after it have exploded: one alone says little of its level."""
    if len(after) >= LEVEL:
        third = len(after) // 3
        late, middle = float(np.median(after[-third:])), float(np.median(after[-2 * third : -third]))
        if late >= KEPT * middle and float(after[1:].std()) <= WIDTH * (late - first):
            return STEP
    return BY if len(after) >= MANY else ALONE


def _ebbs(after: Array, top: float) -> bool:
    """Whether an excerpt ends while the loss falls back, as it does after the first steps without a warm-up."""
    down = after[int(np.argmax(after)) :]
    falls = len(down) >= FALLS and bool((np.diff(down) < 0).all())
    ebbs = falls and float(down[-1]) - top < EBB[1] * float(down[0] - top)
    return len(after) <= EXCERPT and ebbs and float(down[-1]) < GONE * top


def spikes(values: Array, fresh: bool) -> list[Excursion]:
    """All spikes in order. values: (n,), finite."""
    far = _beyond_the_spread(values) if not fresh and 2 + OTHERS <= len(values) <= EXCERPT else []
    if far:
        return far
    if not 3 <= len(values) <= MOST or values.min() < 0 or values[0] == 0:
        return []
    end = _at_the_end(values)
    if end:
        return end
    found: list[Excursion] = []
    at = [*([] if fresh else [1, 2]), *range(NEAR if not fresh else 2 * NEAR - 1, len(values))]
    single = [i for i in at if i + 1 < len(values) and _jumps(values, i) and values[i + 1] <= STILL * _top(values, i)]
    if len(single) >= 2:
        return []  # in this curve, single records jump
    for i in at:
        if (found and i < found[-1].stop) or not _jumps(values, i) or i in single:
            continue
        top = _top(values, i)
        excerpt = not fresh and len(values) <= EXCERPT
        ebbs = _ebbs_away(values[i:], top)
        rough = ROUGH * (scatter(np.diff(values[:i])) if excerpt else _roughness(values, i))
        learned = values[0] - values[:i].min() if fresh else 0.0
        if (excerpt or ebbs) and values[i] - top >= max(SHARE * learned, rough):
            spike = _excursion(values, i, top)
            sure = i > 1 or _certain(values, spike)
            if not excerpt or (sure and _alone(values, spike) and not is_noise(values, spike)):
                found.append(spike)
    if not fresh and not found and len(values) <= EXCERPT:
        return _lone(values)
    return (_relapse(values) if fresh else []) or found


def _ebbs_away(way_back: Array, top: float) -> bool:
    """Whether a curve falls back from a jump record by record: at first by a part, or slowly over more records."""
    first = way_back[: FALLS + 1]
    if len(first) <= FALLS or first[1] <= STILL * top or not (np.diff(first) < 0).all():
        return False
    left = float((first[1] - top) / (first[0] - top))
    slowly = way_back[: SLOW_FALLS + 1]
    slow = len(slowly) > SLOW_FALLS and bool((np.diff(slowly) < 0).all()) and slowly[FALLS] > STILL * top
    return EBB[0] < left < (SLOW_EBB if slow and first[0] >= SLOW_JUMP * top else EBB[1])


def _roughness(values: Array, i: int) -> float:
    """The scatter of the changes of a curve; of those just before a jump, if they are smaller as on a descent."""
    before, whole = values[max(0, i - LOCAL) : i], scatter(np.diff(values))
    if len(before) <= FEWEST_NEAR or before.min() <= 0 or (np.diff(before) < 0).mean() < FALLING:
        return whole
    changes = np.diff(np.log(before))
    return min(whole, max(scatter(changes), float(changes.max())) * float(before[-1]))


def _beyond_the_spread(values: Array) -> list[Excursion]:
    """The only record of an excerpt of negative losses that is a hundred times their spread above all."""
    i = int(np.argmax(values))
    rest = np.delete(values, i)
    spread = float(np.ptp(rest))
    if not 0 < i < len(values) - 1 or values.min() >= 0 or not 0 < LAST * spread <= values[i] - rest.max():
        return []
    base = float(np.median(rest))
    return [Excursion(i, i + 1, i, base, spread, float(values[i] - base) / (LAST * spread), recovered=True)]


def _lone(values: Array) -> list[Excursion]:
    """The only record of an excerpt that is far above all others, which are alike; it lies between two of them."""
    i = int(np.argmax(values))
    rest = np.delete(values, i)
    if not 0 < i < len(values) - 1 or len(rest) < OTHERS or rest.max() <= 0:
        return []
    far = LONE if rest.max() <= ALIKE * rest.min() else BEYOND
    return [_excursion(values, i, _top(values, i))] if values[i] >= far * rest.max() else []


def _at_the_end(values: Array) -> list[Excursion]:
    """The last record, if it is far above all others: the log ends, or was cut, where the loss explodes."""
    i = len(values) - 1
    late = values[i // 2 : i]
    if i < 2 or values[i] < LAST * float(values[:i].max()) or not 0 < late.max() <= CALM * late.min():
        return []
    return [_excursion(values, i, _top(values, i))]


def _top(values: Array, i: int) -> float:
    return float(values[max(0, i - NEAR) : i].max())


def _jumps(values: Array, i: int) -> bool:
    return bool(values[i] >= JUMP * _top(values, i) > 0)


def _excursion(values: Array, i: int, base: float) -> Excursion:
    back = np.flatnonzero(values[i:] <= STILL * base)
    stop = i + int(back[0]) if len(back) else len(values)
    peak = i + int(np.argmax(values[i:stop]))
    over = float(values[peak] - base) / max((JUMP - 1) * base, 1e-300)
    return Excursion(i, stop, peak, base, base, over, recovered=bool(len(back)))


def _alone(values: Array, spike: Excursion) -> bool:
    """Whether no record outside of a spike comes near its peak: a few records say little about the noise."""
    rest = np.concatenate((values[: spike.start], values[spike.stop :]))
    return bool(values[spike.peak] >= JUMP * rest.max())


def _certain(values: Array, spike: Excursion) -> bool:
    """Whether a spike after only one record is more than noise: it rises once and falls once, or is far above.

    It is noise if the record after it lies as far below the first one.
    """
    after = values[spike.stop :]
    if len(after) and spike.base > 0:
        low, high = float(after.min()) / spike.base, float(values[spike.peak]) / spike.base
        if low * low * high < 1:
            return False
    turns = np.diff(np.sign(np.diff(values[spike.start - 1 : spike.stop + 1])))
    return bool((turns != 0).sum() <= 1 or values[spike.peak] >= CLEAR * spike.base)


def _rises_elsewhere(values: Array, start: int, stop: int, ratio: float) -> bool:
    """Whether a few records rise nearly as far outside of a span, from one to the next: they are single batches."""
    apart = (part for part in (values[: start - 1], values[stop:]) if len(part) > 1 and part.min() > 0)
    return any(float((part[1:] / part[:-1]).max()) >= ratio**ELSEWHERE for part in apart)


def _relapse(values: Array) -> list[Excursion]:
    """Above its first value again for four or more records; bad batches last up to three."""
    least = np.minimum.accumulate(values)
    lost = (least <= RELAPSE * values[0]) & (values >= values[0])
    high = np.flatnonzero(lost[3:] & lost[2:-1] & lost[1:-2] & lost[:-3])
    if not len(high):
        return []
    base = float(least[high[0]])
    i = int(high[0])
    while i > 0 and values[i - 1] > 1 / RELAPSE * base:
        i -= 1
    back = np.flatnonzero(values[i:] < base / RELAPSE)
    stop = i + int(back[0]) if len(back) else len(values)
    peak = i + int(np.argmax(values[i:stop]))
    if len(values) <= EXCERPT and base > 0 and _rises_elsewhere(values, i, stop, float(values[peak]) / base):
        return []
    over = float(values[peak]) / max(base, LEAST * float(values[0]), sys.float_info.min)
    return [Excursion(i, stop, peak, base, base, over, recovered=bool(len(back)))]
