"""Labels of traces, and how well a number separates the wrong answers from the right ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_Z = 1.959964
LABELS = ("correct", "is_correct", "passed", "success", "label")
"""Fields that are taken for the label where none is named."""
_RIGHT = ("true", "correct", "right", "pass", "passed", "yes", "success")
_WRONG = ("false", "incorrect", "wrong", "fail", "failed", "no", "failure")
_WORDS = dict.fromkeys(_RIGHT, True) | dict.fromkeys(_WRONG, False)


@dataclass(frozen=True)
class Separation:
    """Area under the ROC curve of a number as a sign of a wrong answer, with its 95 % interval.

    The interval is that of Newcombe 2006 (Statistics in Medicine 25:559, method 5): the areas from which this one is
    less than 1.96 of their own standard errors away. It is wider than a point even at 0 and 1.
    """

    name: str
    auc: float
    low: float
    high: float


def label_of(record: Any, field: str) -> Any:
    """The value of a field, whose name may be a path with dots; None if the record has none."""
    for part in field.split("."):
        if not isinstance(record, Mapping) or part not in record:
            return None
        record = record[part]
    return record


def is_right(value: Any) -> bool | None:
    """True: the answer is right (true, a number above 0.5, 'correct'); None: this is no label."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return value > 0.5
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def separation(name: str, wrong: Sequence[float], right: Sequence[float]) -> Separation:
    """wrong, right: the number of each trace; at least one of both."""
    x, y = np.asarray(wrong, np.float64), np.asarray(right, np.float64)
    auc = float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())
    grid = np.linspace(0.0, 1.0, 10_001)
    more = (len(x) + len(y)) / 2 - 1
    spread = 1 + more * (1 - grid) / (2 - grid) + more * grid / (1 + grid)
    near = grid[np.abs(auc - grid) <= _Z * np.sqrt(grid * (1 - grid) * spread / (len(x) * len(y)))]
    return Separation(name, auc, float(min(near, default=auc)), float(max(near, default=auc)))
