"""The definitions, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def rms(outputs: Sequence[np.ndarray]) -> list[float]:
    """Of each call."""
    return [float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2))) for x in outputs]


def gain(outputs: Sequence[np.ndarray]) -> float:
    """Root mean square of the last output over that of the first."""
    found = rms(outputs)
    return found[-1] / found[0]


def relative_steps(outputs: Sequence[np.ndarray]) -> list[float]:
    """||x_i - x_(i-1)|| / ||x_i||, from the second call on."""
    wide = [np.asarray(x, np.float64) for x in outputs]
    return [float(np.linalg.norm(b - a) / np.linalg.norm(b)) for a, b in pairwise(wide)]
