"""Plain torch; the slope is that which autograd finds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SLOPE = 0.01


def saturation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """float32 (4,): elements of x (N, D), those with |slope| < 0.01, units (columns), of these saturated in all rows.

    function: elementwise, and nothing else. Elements that are not finite are not saturated: they are counted elsewhere.
    """
    x = x.detach().float()
    with torch.enable_grad():
        inputs = x.requires_grad_()
        (slope,) = torch.autograd.grad(function(inputs).sum(), inputs)
    flat = slope.abs() < SLOPE
    sizes = torch.tensor((float(x.numel()), float(x.shape[1])), device=x.device)
    counts = torch.stack((flat.sum(), flat.all(dim=0).sum())).float()
    return torch.stack((sizes, counts), dim=1).flatten()
