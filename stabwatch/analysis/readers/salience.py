"""Selects the records with unusual values, which stay when there are too many for memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Role

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK = 64
"""Records that are kept or dropped together, so an unusual value keeps its neighbours."""
_LEVEL = 256
"""Records for the median and scatter with which a value is compared."""
_SIGMAS = 6.0
_LEAST_SCATTER = 1e-3
"""Smallest scatter relative to the level."""
_SHARE = 8
"""One block in this many may stay, the most unusual first."""
_STEP = 1.5
"""Ratio to the value before from which a learning rate or a loss scale has jumped."""
_CERTAIN = 100.0


def salient(steps: Ints, columns: Iterable[tuple[Role, Ints, Floats]]) -> NDArray[np.bool_]:
    """Records to keep, (records,): blocks with a non-finite value, a value far from its level, a jump, an increment of
    a counter, or a step that goes back; also the neighbouring blocks, and the first and last.

    columns: the role of each, its record indices (points,), ascending, and its values (points,).
    """
    score = np.zeros(-(-len(steps) // BLOCK) * BLOCK)
    for role, at, values in columns:
        np.maximum.at(score, at, _score(role, values))
    back = np.flatnonzero(np.diff(steps) < 0)
    score[back] = score[back + 1] = np.inf
    blocks = score.reshape(-1, BLOCK).max(axis=1, initial=0.0)
    stays = blocks > _SIGMAS
    most = len(blocks) // _SHARE
    if stays.sum() > most:
        stays = np.zeros(len(blocks), dtype=bool)
        stays[np.argsort(-blocks, kind="stable")[:most]] = True
    stays[: 1024 // BLOCK] = stays[-1024 // BLOCK :] = True
    stays = stays | np.append(stays[1:], False) | np.append(False, stays[:-1])
    return np.repeat(stays, BLOCK)[: len(steps)]


def _score(role: Role, values: Floats) -> Floats:
    """Score of each value, in scatters."""
    finite = np.isfinite(values)
    score = np.where(finite, 0.0, np.inf)
    finite_values = np.where(finite, values, 0.0)
    if role in ("loss", "eval_loss", "grad_norm"):
        score = np.maximum(score, _from_level(finite_values))
    elif role in ("skipped_steps", "nan_steps"):
        score = np.maximum(score, np.where(finite_values > 0, _CERTAIN, 0.0))
    elif role in ("learning_rate", "loss_scale"):
        before = np.append(finite_values[:1], finite_values[:-1])
        jumps = (finite_values > _STEP * before) | (_STEP * finite_values < before)
        score = np.maximum(score, np.where(jumps, _CERTAIN, 0.0))
    return score


def _from_level(values: Floats) -> Floats:
    whole = -(-len(values) // _LEVEL) * _LEVEL
    rows = np.pad(values, (0, whole - len(values)), mode="edge").reshape(-1, _LEVEL)
    centre = np.median(rows, axis=1, keepdims=True)
    distance = np.abs(rows - centre)
    scatter = np.maximum(1.4826 * np.median(distance, axis=1, keepdims=True), _LEAST_SCATTER * np.abs(centre))
    return np.asarray(distance / np.maximum(scatter, 1e-300)).reshape(-1)[: len(values)]
