"""The definitions, in float64."""

from __future__ import annotations

import math

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


def row_cosines(a: Tensor, b: Tensor) -> list[float]:
    """Rows of a and b that have a direction, and the sum of their cosines."""
    pairs = [(x, y) for x, y in zip(a.double(), b.double(), strict=True) if x.norm() > 0 and y.norm() > 0]
    return [float(len(pairs)), sum(float(x @ y / (x.norm() * y.norm())) for x, y in pairs)]


def invariance(weight: Tensor, gradient: Tensor) -> list[bool]:
    """AdamP's test by row (all cosines under 0.1 / sqrt(n)), and of the whole matrix (under 0.01 / sqrt(n))."""
    w, g = (x.detach().double().flatten(1) for x in (weight, gradient))
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(w, g, strict=True) if a.norm() * b.norm() > 0]
    rows = len(w) > 1 and bool(cosines) and max(map(abs, cosines)) < 0.1 / w.shape[1] ** 0.5
    whole = float(w.flatten() @ g.flatten() / (w.norm() * g.norm())) if w.norm() * g.norm() > 0 else 1.0
    return [rows, abs(whole) < 0.01 / w.numel() ** 0.5]


def radial(update: Tensor, weight: Tensor, by_row: bool, whole: bool) -> Tensor:
    """float64 (4,): scale-invariant vectors, |update|^2 there, its part along them, squared angles."""
    u, w = (x.detach().double().flatten(1) for x in (update, weight))
    pairs = list(zip(u, w, strict=True)) if by_row else [(u.flatten(), w.flatten())] if whole else []
    pairs = [(a, b) for a, b in pairs if b.norm() > 0]
    along = [float(a @ b / b.norm()) ** 2 for a, b in pairs]
    cosines = [float((a + b) @ b / ((a + b).norm() * b.norm())) for a, b in pairs]
    angles = [math.acos(min(1.0, c)) ** 2 for c in cosines]
    squares = sum(float(a @ a) for a, _ in pairs)
    return torch.tensor([len(pairs), squares, sum(along), sum(angles)], dtype=torch.float64)
