"""Instability of a generation, token by token: divergence of successive distributions plus their entropy.

I_t = JSD(p_t, p_t-1) + lambda H(p_t), in nat. Where only the most probable tokens were listed, the others are one
further token: the entropy is a lower bound then, and a token that only one of two steps lists has probability 0 in the
other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabwatch.analysis.traces.steps import Array, Step


@dataclass(frozen=True)
class Instability:
    """Of one trace. values: I_t, float64 (tokens,), NaN for the first and where a step is not known.

    peak: the largest value, `at` its token, from 0; place: `at` over the last token, 0 to 1. mean, entropy, divergence:
    means over the tokens. covered: mean probability of the tokens that were listed.
    """

    values: Array
    peak: float
    at: int
    place: float
    mean: float
    entropy: float
    divergence: float
    covered: float

    @property
    def tokens(self) -> int:
        """Length of the trace."""
        return len(self.values)


def instability(steps: Sequence[Step | None], weight: float = 1.0) -> Instability | None:
    """weight: lambda. None if no two successive steps are known."""
    entropies = np.array([math.nan if s is None else entropy(s) for s in steps])
    pairs = itertools.pairwise(steps)
    moved = np.array([math.nan, *(math.nan if a is None or b is None else divergence(a, b) for a, b in pairs)])
    values = moved + weight * entropies
    if not np.isfinite(values).any():
        return None
    at = int(np.nanargmax(values))
    return Instability(
        values, float(values[at]), at, at / (len(values) - 1), float(np.nanmean(values)), float(np.nanmean(entropies)),
        float(np.nanmean(moved)), float(np.mean([_listed(s) for s in steps if s is not None])),
    )  # fmt: skip


def entropy(p: Step) -> float:
    """In nat; what was not listed is one token."""
    return float(_entropy(_whole(p)))


def divergence(p: Step, q: Step) -> float:
    """Jensen-Shannon divergence in nat: 0 (equal) to ln 2 (nothing in common)."""
    a, b = _aligned(p, q)
    return max(0.0, float(_entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2))


def _aligned(p: Step, q: Step) -> tuple[Array, Array]:
    """The same tokens in the same order, what was not listed last."""
    if isinstance(p, np.ndarray) or isinstance(q, np.ndarray):
        a, b = _whole(p), _whole(q)
        size = max(len(a), len(b))
        return np.pad(a, (0, size - len(a))), np.pad(b, (0, size - len(b)))
    tokens = list(dict.fromkeys((*p, *q)))
    a, b = (np.array([*(x.get(token, 0.0) for token in tokens), 1 - _listed(x)]) for x in (p, q))
    return a, b


def _whole(p: Step) -> Array:
    if isinstance(p, np.ndarray):
        return p
    return np.array([*p.values(), 1 - _listed(p)])


def _listed(p: Step) -> float:
    return 1.0 if isinstance(p, np.ndarray) else min(1.0, sum(p.values()))


def _entropy(p: Array) -> float:
    some = p[p > 0]
    return float(-(some * np.log(some)).sum())
