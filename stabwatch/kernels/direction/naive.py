"""The definitions, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def direction(update: Tensor, weight: Tensor) -> Tensor:
    """float64 (4,): elements, update . weight, |update|^2, |weight|^2."""
    u, w = update.detach().double().flatten(), weight.detach().double().flatten()
    return torch.tensor([float(len(u)), float(u @ w), float(u @ u), float(w @ w)], dtype=torch.float64)


def adam(mean: Tensor, square: Tensor, eps: float, step: int, betas: tuple[float, float]) -> Tensor:
    """float64 (3,): elements, sum of (m / (sqrt(v) + eps))^2, elements with v < eps^2, both moments without bias."""
    m = mean.detach().double().flatten() / (1 - betas[0] ** step)
    v = square.detach().double().flatten() / (1 - betas[1] ** step)
    ratio = (m / (v.sqrt() + eps)).square().sum()
    return torch.tensor([float(len(m)), float(ratio), float((v < eps**2).sum())], dtype=torch.float64)
