"""Plain torch. The slope is a symmetric difference; within one step of a kink it is between the two slopes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stabwatch.kernels.constants import device_constant

SLOPE = 0.01
_STEP = 2.0**-7
"""Step to either side, relative to 1 + |x|."""


def saturation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """float32 (4,): elements of x (N, D), those with |slope| < 0.01, units (columns), units saturated in all rows.

    function: must be elementwise. Non-finite elements do not count as saturated; other signals count them.
    Without autograd, which does not work where a compiled graph calls this.
    """
    with torch.no_grad():
        x = x.detach().float()
        step = (1 + x.abs()) * _STEP
        flat = (function(x + step) - function(x - step)).abs() < SLOPE * 2 * step
        flat &= torch.isfinite(x)
    sizes = device_constant((float(x.numel()), float(x.shape[1])), torch.float32, x.device)
    counts = torch.stack((flat.sum(), flat.all(dim=0).sum())).float()
    return torch.stack((sizes, counts), dim=1).flatten()
