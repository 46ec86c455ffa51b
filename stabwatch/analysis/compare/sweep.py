"""Learning-rate sensitivity as defined by Wortsman et al. 2023 (small-scale proxies, arXiv:2309.14322)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabwatch.analysis.compare.curve_set import CurveSet

LEAST_RATES = 3


@dataclass(frozen=True)
class Sensitivity:
    """E[min(loss(rate), loss_0) - loss*] over the learning rates of a sweep at one model size.

    rates, losses: distinct peak learning rates and the final loss at each (the mean over runs of one rate), at most
    loss_0, which also replaces a non-finite loss. initial: loss_0, the median first loss. best: loss*, at
    `best_rate`. value: the mean over the rates.
    """

    parameters: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    initial: float
    best: float
    best_rate: float
    value: float


def sensitivities(subjects: Sequence[CurveSet]) -> tuple[Sensitivity, ...]:
    """The sensitivity of each model size with three or more learning rates, by size."""
    sizes: dict[float, list[CurveSet]] = {}
    for subject in subjects:
        if math.isfinite(subject.learning_rate) and len(subject.curve("loss")[1]):
            sizes.setdefault(subject.parameters, []).append(subject)
    found = (_sensitivity(size, group) for size, group in sorted(sizes.items()))
    return tuple(s for s in found if s is not None)


def _sensitivity(size: float, group: list[CurveSet]) -> Sensitivity | None:
    firsts = np.array([s.curve("loss")[1][0] for s in group])
    firsts = firsts[np.isfinite(firsts)]
    rates = sorted({s.learning_rate for s in group})
    if len(rates) < LEAST_RATES or not len(firsts):
        return None
    initial = float(np.median(firsts))
    losses = [float(np.mean([min(_final(s), initial) for s in group if s.learning_rate == rate])) for rate in rates]
    best = min(losses)
    rate = rates[losses.index(best)]
    return Sensitivity(size, tuple(rates), tuple(losses), initial, best, rate, float(np.mean(losses)) - best)


def _final(subject: CurveSet) -> float:
    loss = subject.end("loss")
    return loss if math.isfinite(loss) else math.inf
