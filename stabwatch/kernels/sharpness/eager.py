"""Plain torch: nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Vector = list[Tensor]
Operator = Callable[[Sequence[Tensor]], Vector]


def climb(apply: Operator, vector: Sequence[Tensor]) -> tuple[Vector, Tensor]:
    """One step towards the eigenvector of the largest eigenvalue of a symmetric operator: two products with it.

    The best vector in the plane of v and A v (two steps of Lanczos). vector: the parts of v, of norm 1. Returns the
    parts of the new unit vector x, and float32 (2,): its Rayleigh quotient x A x and ||A x - (x A x) x|| / |x A x|.
    """
    v = list(vector)
    w = apply(v)
    a = dot(v, w)
    away = _sum((1.0, w), (-a, v))
    b = dot(away, away).sqrt()
    u = [x / torch.where(b > 0, b, 1.0) for x in away]
    z = apply(u)
    c = dot(u, z)
    value = (a + c) / 2 + torch.hypot((a - c) / 2, b)
    x, y = torch.where(a >= c, value - c, b), torch.where(a >= c, b, value - a)
    length = torch.hypot(x, y)
    x, y = torch.where(length > 0, x / length, 1.0), torch.where(length > 0, y / length, 0.0)
    rest = _sum((x, w), (y, z), (-value * x, v), (-value * y, u))
    residual = dot(rest, rest).sqrt() / value.abs().clamp(min=torch.finfo(torch.float32).tiny)
    return unit(_sum((x, v), (y, u))), torch.stack((value, residual))


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Of two vectors in parts."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def unit(vector: Sequence[Tensor]) -> Vector:
    """The vector divided by its norm; the zero vector stays as it is."""
    norm = dot(vector, vector).sqrt()
    return [v / torch.where(norm > 0, norm, 1.0) for v in vector]


def _sum(*terms: tuple[Tensor | float, Sequence[Tensor]]) -> Vector:
    return [
        sum((s * x for (s, _), x in zip(terms[1:], parts[1:], strict=True)), terms[0][0] * parts[0])
        for parts in zip(*(v for _, v in terms), strict=True)
    ]
