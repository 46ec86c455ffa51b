"""Of more records than memory should hold: which have to stay, because something in them is unusual."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Role

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK = 64
"""Records that stay or go together, so that an unusual value keeps its surroundings."""
_LEVEL = 256
"""Records whose median and scatter a value is compared with."""
_SIGMAS = 6.0
_LEAST_SCATTER = 1e-3
"""Of the level: what scatters less has no scatter to speak of."""
_SHARE = 8
"""One block in so many may stay, the most unusual first: where all do, none does."""
_STEP = 1.5
"""Times the value before: a learning rate or a loss scale that changes by that much has jumped."""
_SURE = 100.0


def salient(steps: Ints, columns: Iterable[tuple[Role, Ints, Floats]]) -> NDArray[np.bool_]:
    """Records to keep, (records,): blocks in which a value is not finite, or far from its level, or jumps, or a counter
    counts, or the step goes back; with the blocks beside them, and the first and last.

    columns: of each its role, the records that have it, (points,), ascending, and its values, (points,).
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
    """How unusual each is, in scatters."""
    finite = np.isfinite(values)
    score = np.where(finite, 0.0, np.inf)
    filled = np.where(finite, values, 0.0)
    if role in ("loss", "eval_loss", "grad_norm"):
        score = np.maximum(score, _from_level(filled))
    elif role in ("skipped_steps", "nan_steps"):
        score = np.maximum(score, np.where(filled > 0, _SURE, 0.0))
    elif role in ("learning_rate", "loss_scale"):
        before = np.append(filled[:1], filled[:-1])
        jumps = (filled > _STEP * before) | (_STEP * filled < before)
        score = np.maximum(score, np.where(jumps, _SURE, 0.0))
    return score


def _from_level(values: Floats) -> Floats:
    whole = -(-len(values) // _LEVEL) * _LEVEL
    rows = np.pad(values, (0, whole - len(values)), mode="edge").reshape(-1, _LEVEL)
    middle = np.median(rows, axis=1, keepdims=True)
    apart = np.abs(rows - middle)
    scatter = np.maximum(1.4826 * np.median(apart, axis=1, keepdims=True), _LEAST_SCATTER * np.abs(middle))
    return np.asarray(apart / np.maximum(scatter, 1e-300)).reshape(-1)[: len(values)]
