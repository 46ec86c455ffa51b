"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def shape(x: Tensor) -> Tensor:
    """x (N, D) -> float64 (4,): elements, sum of squares, sum of fourth powers, outliers.

    An outlier is more than five (population) standard deviations from the mean of its row.
    """
    x = x.detach().double()
    away = (x - x.mean(-1, keepdim=True)).abs() > 5 * x.std(-1, keepdim=True, correction=0)
    return torch.stack((torch.tensor(float(x.numel())), x.square().sum(), x.pow(4).sum(), away.sum())).double()
