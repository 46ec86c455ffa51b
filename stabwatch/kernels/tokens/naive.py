"""The definition: every pair of tokens, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens(x: Tensor, groups: Tensor | None = None) -> Tensor:
    """x (B, T, D) -> float64 (4,): samples, sum of their mean off-diagonal cosines, |mean part|^2, |centred part|^2.

    With groups (K, B, T), each group of two or more tokens is one sample.
    """
    x = x.detach().double()
    samples = list(x)
    if groups is not None:
        samples = [x[b, mask[b]] for mask in groups for b in range(len(x)) if mask[b].sum() > 1]
    cosine = mean = centred = 0.0
    for sample in samples:
        pairs = torch.nn.functional.cosine_similarity(sample[:, None], sample[None], dim=-1, eps=1e-30)
        n = len(sample)
        cosine += float((pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1)))
        mean += n * float(sample.mean(0).square().sum())
        centred += float((sample - sample.mean(0)).square().sum())
    return torch.tensor([float(len(samples)), cosine, mean, centred], dtype=torch.float64)
