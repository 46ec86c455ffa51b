"""The detectors in use today, on the loss and gradient norm of every step. Each gives the steps at which it is on.

Written from their descriptions and defaults; the sources are named at each. `by` scales the threshold.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Detector(Protocol):
    """(losses, gradient norms), each (steps,), NaN where there is none: the steps at which it says trouble."""

    def __call__(self, losses: Array, norms: Array, by: float = 1.0) -> list[int]:
        """by: over its usual threshold."""


def spike_score(losses: Array, norms: Array, by: float = 1.0) -> list[int]:
    """OLMo's SpikeScore counts steps more than six standard deviations above the mean of the 128 before, of either."""
    return sorted({*_beyond(losses, 6.0 * by, 128), *_beyond(norms, 6.0 * by, 128)})


def _beyond(values: Array, sigmas: float, window: int) -> list[int]:
    out, past = [], deque[float](maxlen=window)
    for step, x in enumerate(values.tolist()):
        if len(past) == window and (not math.isfinite(x) or x > np.mean(past) + sigmas * np.std(past)):
            out.append(step)
        if math.isfinite(x):
            past.append(x)
    return out


def lightning(losses: Array, norms: Array, by: float = 1.0) -> list[int]:
    """Lightning Fabric's SpikeDetection: not better than the last, and three times the mean of the last ten."""
    out, past, last = [], deque[float](maxlen=10), 0.0
    for step, x in enumerate(losses.tolist()):
        if not math.isfinite(x):
            out.append(step)
            continue
        mean = float(np.mean(past)) if past else math.inf
        if step >= 1 and x > last and abs(x - mean) >= abs(2.0 * by * mean):
            out.append(step)
        else:
            past.append(x)
            last = x
    return out


def foundry(losses: Array, norms: Array, by: float = 1.0) -> list[int]:
    """llm-foundry's KillLossSpike: twice the mean of the last 100 five times in a row; or half of them above 10."""
    out, past, count = [], deque[float](maxlen=100), 0
    for step, x in enumerate(losses.tolist()):
        if len(past) == 100:
            count = count + 1 if x >= (1 + by) * np.mean(past) else 0
            high = step >= 200 and sum(y > 10 * by for y in past) >= 50
            if count > 4 or high:
                out.append(step)
        past.append(x)
    return out


def zclip(losses: Array, norms: Array, by: float = 1.0) -> list[int]:
    """ZClip: 2.5 standard deviations above a moving mean of the norm (0.97), which what it clipped enters clipped."""
    out, first, mean, variance, most = [], [], 0.0, 0.0, 2.5 * by
    for step, x in enumerate(norms.tolist()):
        if len(first) < 25:
            if math.isfinite(x):
                first.append(x)
                mean, variance = float(np.mean(first)), float(np.var(first))
            continue
        z = (x - mean) / (math.sqrt(variance) + 1e-6)
        if not z <= most:
            out.append(step)
            x = mean + most * math.sqrt(variance) / (z / most) if math.isfinite(z) else mean
        mean = 0.97 * mean + 0.03 * x
        variance = 0.97 * variance + 0.03 * (x - mean) ** 2
    return out


def ten_times(losses: Array, norms: Array, by: float = 1.0) -> list[int]:
    """Gradient norm above ten times its running mean of the last 100, or not finite."""
    out, past = [], deque[float](maxlen=100)
    for step, x in enumerate(norms.tolist()):
        if len(past) >= 10 and not x <= 10 * by * np.mean(past):
            out.append(step)
        elif math.isfinite(x):
            past.append(x)
    return out


OTHERS: dict[str, Detector] = {
    "SpikeScore (OLMo)": spike_score,
    "SpikeDetection (Lightning)": lightning,
    "KillLossSpike (llm-foundry)": foundry,
    "ZClip z > 2.5": zclip,
    "norm > 10 x mean": ten_times,
}

GRID = tuple(2.0 ** (i / 2) for i in range(-4, 11))
"""Thresholds that are tried, over the usual one: from a quarter to 32 times."""


def at(scales: dict[str, float]) -> dict[str, Detector]:
    """The detectors with other thresholds."""
    return {name: partial(OTHERS[name], by=by) for name, by in scales.items()}


def episodes(steps: list[int], apart: int) -> list[int]:
    """First steps of what is one alarm to a person: steps on, less than `apart` from each other."""
    out: list[int] = []
    last = -apart
    for step in steps:
        if step - last >= apart:
            out.append(step)
        last = step
    return out
