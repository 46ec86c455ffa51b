"""Plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.kernels.moments.eager import host_sumsq
from stabwatch.kernels.where import on_host

PART = 1 << 16
"""Elements per float32 dot product on the CPU."""
BY_ROW, BY_MATRIX = 0.1, 0.01
"""Limits of the cosine of weight and gradient times sqrt(n); below them the two count as orthogonal."""


def direction(update: Tensor, weight: Tensor) -> Tensor:
    """float32 (4,): elements, update . weight, |update|^2, |weight|^2, for two tensors of one shape.

    With the last update in place of the weight, it measures how far the step keeps its direction. With the negative
    gradient in place of the update, it measures how far descent only scales the weight.
    """
    u, w = update.detach().float().flatten(), weight.detach().float().flatten()
    count = torch.full((), float(u.numel()), device=u.device)
    return torch.stack((count, _dot(u, w), _dot(u, u), _dot(w, w)))


def adam(mean: Tensor, square: Tensor, eps: float, step: Any, betas: tuple[float, float]) -> Tensor:
    """float32 (3,): elements, sum of (m / (sqrt(v) + eps))^2, elements with v < eps^2, both moments without bias.

    step: number of steps in the moments, a number or a tensor on any device.
    """
    seen = step.double() if isinstance(step, Tensor) else step
    # numbers or 0-dim tensors, which divide a tensor on any device without a copy
    first, second = (1.0 - beta**seen for beta in betas)
    m, v = mean.detach().float() / first, square.detach().float() / second
    size = m / (v.sqrt() + eps)
    count = torch.full((), float(m.numel()), device=m.device)
    return torch.stack((count, size.square().sum(), (v.sqrt() < eps).sum(dtype=torch.float32)))


def together(updates: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """float32 (4,): `direction` of many tensors taken as one, in few launches and without copying them."""
    pairs = [
        (u.detach().float().flatten(), w.detach().float().flatten()) for u, w in zip(updates, weights, strict=True)
    ]
    dot = torch.stack([_dot(u, w) for u, w in pairs]).sum()
    count = torch.full_like(dot, float(sum(len(u) for u, _ in pairs)))
    return torch.stack((count, dot, *(_sumsq(x, dot) for x in zip(*pairs, strict=True))))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """x . y of two vectors. On the CPU in chunks, to limit rounding: each vector lane adds one number after another."""
    if not on_host(x):
        return torch.dot(x, y)
    return torch.stack([torch.dot(a, b) for a, b in zip(x.split(PART), y.split(PART), strict=True)]).sum()


def _sumsq(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    if on_host(like):
        return torch.tensor(sum(host_sumsq(x) for x in tensors))
    return torch.stack(list(torch._foreach_norm(list(tensors)))).square().sum()


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """float32 (2,): rows of a and b (N, D) that have a direction, and the sum of their cosines. Any N."""
    units = []
    for x in (a, b):
        x = x.detach().float()
        units.append(F.normalize(x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-38), dim=1, eps=1e-6))
    cosines = (units[0] * units[1]).sum(dim=1)
    known = units[0].any(dim=1) & units[1].any(dim=1)
    return torch.stack((known.sum(dtype=torch.float32), cosines.sum()))


def invariance(weight: Tensor, gradient: Tensor) -> Tensor:
    """bool (2,): whether the loss is invariant to the length of each row of a matrix (O, ...), and of the whole.

    AdamP's test: then the gradient is orthogonal to them. A random direction of n numbers has a cosine of about
    1 / sqrt(n). The whole matrix, a single vector, has a narrower limit.
    """
    w, g = (x.detach().float().flatten(1) for x in (weight, gradient))
    dots, lengths, others = (w * g).sum(1), w.square().sum(1), g.square().sum(1)
    squares = lengths * others
    rows = (dots.square() * w.shape[1] < BY_ROW**2 * squares) | (squares == 0)
    whole = dots.sum().square() * w.numel() < BY_MATRIX**2 * lengths.sum() * others.sum()
    return torch.stack((rows.all() & (squares > 0).any() & (len(w) > 1), whole))


def radial(update: Tensor, weight: Tensor, invariant: Tensor) -> Tensor:
    """float32 (4,): scale-invariant vectors, |update|^2 there, its part along them, squared angles by which they turn.

    update, weight: of one shape (O, ...); the weight before the step. invariant: the result of `invariance`.
    """
    u, w = (x.detach().float().flatten(1) for x in (update, weight))
    by_row, whole = invariant[0], invariant[1] & ~invariant[0]
    rows = torch.stack(((u * w).sum(1), u.square().sum(1), w.square().sum(1)))
    return _turned(*rows.where(by_row, 0.0)) + _turned(*rows.sum(1, keepdim=True).where(whole, 0.0))


def _turned(dot: Tensor, update: Tensor, weight: Tensor) -> Tensor:
    """(4,): vectors, |update|^2, its radial part, squared angles; vectors of length zero have no direction."""
    known = weight > 0
    radial = torch.where(known, dot.square() / weight, 0.0)
    rest = (update - radial).clamp(min=0)
    angle = torch.atan2(rest.sqrt(), weight.sqrt() + torch.where(known, dot / weight.sqrt(), 0.0))
    kept = torch.where(known, update, 0.0)
    return torch.stack((known.sum(dtype=torch.float32), kept.sum(), radial.sum(), (angle * known).square().sum()))
