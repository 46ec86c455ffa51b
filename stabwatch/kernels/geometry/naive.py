"""The definition, in float64, with scipy: condensed cosine distances and Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def split_scores(x: Array, permutations: Sequence[Sequence[int]]) -> list[float]:
    """x (n, D): for each permutation of the features, the correlation between the distances in its two halves."""
    x = np.asarray(x, np.float64)
    half = x.shape[1] // 2
    return [_correlation(x[:, list(p[:half])], x[:, list(p[half : 2 * half])]) for p in permutations]


def drift(x: Array, reference: Array) -> float:
    """1 - Spearman's correlation between the distances in x (n, D) and in reference (n, E): 0 to 2."""
    return 1 - _correlation(np.asarray(x, np.float64), np.asarray(reference, np.float64))


def centred_cosine(x: Array, before: Array) -> float:
    """Of x (n, D) and before (n, D): feature by feature, the mean over the points is taken away first."""
    products = [[0.0, 0.0, 0.0]]
    for a, b in zip(np.asarray(x, np.float64).T, np.asarray(before, np.float64).T, strict=True):
        a, b = a - a.mean(), b - b.mean()
        products.append([float(a @ b), float(a @ a), float(b @ b)])
    dot, first, second = np.sum(products, axis=0)
    return float(dot / np.sqrt(first * second))


def _correlation(a: Array, b: Array) -> float:
    """Correlation over pairs of points with an angle in both; a point of length zero has none."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    known = a.any(axis=1) & b.any(axis=1)
    return float(spearmanr(pdist(a[known], "cosine"), pdist(b[known], "cosine"))[0])
