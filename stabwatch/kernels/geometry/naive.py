"""The definition, in float64, with scipy: condensed cosine distances and Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def split_scores(x: Array, permutations: Sequence[Sequence[int]]) -> list[float]:
    """x (n, D): for each permutation of the features, the correlation between the distances that its halves give."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    x = np.asarray(x, np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    half = x.shape[1] // 2
    return [
        float(
            spearmanr(pdist(unit[:, list(p[:half])], "cosine"), pdist(unit[:, list(p[half : 2 * half])], "cosine"))[0]
        )
        for p in permutations
    ]


def drift(x: Array, reference: Array) -> float:
    """1 - Spearman's correlation between the distances in x (n, D) and in reference (n, E): 0 to 2."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return 1 - float(spearmanr(pdist(np.asarray(x), "cosine"), pdist(np.asarray(reference), "cosine"))[0])
