"""Plain torch on tensors (layers, batch, heads, queries): all layers of a model at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FEW = 1 << 14
"""Most numbers of a layer for which numpy is quicker than torch."""


def brackets(lse: Tensor, log_keys: Tensor | float) -> Tensor:
    """float32 (L, 6): rows, sum of LSE squared, non-finite rows, upper bound, its head, lower bound.

    lse: (L, B, H, T) logsumexp of each query row; -inf marks a row that sees no key and is left out.
    log_keys: natural log of the visible keys, (T,) or a number; an overestimate keeps the bounds sound.
    """
    lse = lse.float()
    if lse.device.type == "cpu":
        with np.errstate(all="ignore"):  # a sum of squares may leave the range of float32
            found = _on_host(lse, log_keys)
        if found is not None:
            return found
    finite = torch.isfinite(lse)
    wrong = torch.isnan(lse) | (lse == torch.inf)
    bad = wrong.sum(dim=(1, 2, 3), dtype=torch.float32)
    rows = finite.sum(dim=(1, 2, 3), dtype=torch.float32) + bad
    shown = torch.where(finite, lse, -torch.inf)
    kept = torch.where(finite, lse, 0.0)
    upper, head = shown.amax(dim=(1, 3)).max(dim=1)
    sumsq = torch.linalg.vector_norm(kept, dim=(1, 2, 3)).square()
    lower = (shown - log_keys).amax(dim=(1, 2, 3))
    return torch.stack((rows, sumsq, bad, upper, head.float(), lower), dim=1)


def _on_host(lse: Tensor, log_keys: Tensor | float) -> Tensor | None:
    """The same in the host's memory; None if some are not finite."""
    if lse[0].numel() <= FEW and (found := _of_few(lse.numpy(), log_keys)) is not None:
        return found
    norms = torch.linalg.vector_norm(lse, dim=(1, 2, 3)).numpy()
    return _of_finite(lse, log_keys, norms) if math.isfinite(norms.sum()) else None


def _of_few(lse: NDArray[np.float32], log_keys: Tensor | float) -> Tensor | None:
    """The same by numpy, which needs less for each operation; None if some are not finite."""
    flat = lse.reshape(len(lse), -1).astype(np.float64)
    sumsq = np.einsum("ij,ij->i", flat, flat)
    if not math.isfinite(sumsq.sum()):
        return None
    of_all = lse.max(axis=1)  # over the samples: long rows, which numpy is quick at
    heads, keys = of_all.max(axis=2), log_keys.numpy() if isinstance(log_keys, Tensor) else log_keys
    out = np.empty((len(lse), 6), dtype=np.float32)
    out[:, 0], out[:, 1], out[:, 2] = flat.shape[1], sumsq, 0.0
    out[:, 3], out[:, 4] = heads.max(axis=1), heads.argmax(axis=1)
    out[:, 5] = (of_all.max(axis=1) - keys).max(axis=1)
    return torch.from_numpy(out)


def _of_finite(lse: Tensor, log_keys: Tensor | float, norms: NDArray[np.float32]) -> Tensor:
    """The same in the host's memory where all are finite, with few operations. norms: of the layers, (L,)."""
    heads = lse.amax(dim=(1, 3)).numpy()
    out = np.empty((len(lse), 6), dtype=np.float32)
    out[:, 0], out[:, 1], out[:, 2] = lse[0].numel(), norms * norms, 0.0
    out[:, 3], out[:, 4] = heads.max(axis=1), heads.argmax(axis=1)
    out[:, 5] = (lse - log_keys).amax(dim=(1, 2, 3)).numpy()
    return torch.from_numpy(out)
