"""Plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def direction(update: Tensor, weight: Tensor) -> Tensor:
    """float32 (4,): elements, update . weight, |update|^2, |weight|^2; two tensors of one shape.

    With the last update in the place of the weight it tells how far the step keeps its direction.
    """
    u, w = update.detach().float().flatten(), weight.detach().float().flatten()
    count = torch.full((), float(u.numel()), device=u.device)
    return torch.stack((count, torch.dot(u, w), torch.dot(u, u), torch.dot(w, w)))


def adam(mean: Tensor, square: Tensor, eps: float, step: Any, betas: tuple[float, float]) -> Tensor:
    """float32 (3,): elements, sum of (m / (sqrt(v) + eps))^2, elements with v < eps^2, both moments without bias.

    step: how many steps the moments have seen, a number or a tensor (it may lie on the device).
    """
    seen = step.double() if isinstance(step, Tensor) else step
    # numbers, or tensors of no dimensions, which divide a tensor of any device without a copy
    first, second = (1.0 - beta**seen for beta in betas)
    m, v = mean.detach().float() / first, square.detach().float() / second
    size = m / (v.sqrt() + eps)
    count = torch.full((), float(m.numel()), device=m.device)
    return torch.stack((count, size.square().sum(), (v.sqrt() < eps).sum(dtype=torch.float32)))
