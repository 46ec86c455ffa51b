"""Plain torch: nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def climb_rows(forward: Product, back: Product, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step towards the first right singular vector of each of B maps: two products with J and with its transpose.

    The best vector in the plane of v and J'J v (two steps of Lanczos), for each map apart. forward, back: take (B, n)
    to (B, m) by J and back by its transpose. vectors: (B, n), rows of norm 1. Returns the new unit vectors x (B, n),
    |J x| (B,) and ||J'J x - |J x|^2 x|| / |J x|^2 (B,). |J x| is the largest singular value from below.
    """
    v = vectors
    w = back(forward(v))
    a = (v * w).sum(dim=1, keepdim=True)
    away = w - a * v
    b = away.norm(dim=1, keepdim=True)
    u = away / torch.where(b > 0, b, 1.0)
    z = back(forward(u))
    c = (u * z).sum(dim=1, keepdim=True)
    value = (a + c) / 2 + torch.hypot((a - c) / 2, b)
    x, y = torch.where(a >= c, value - c, b), torch.where(a >= c, b, value - a)
    length = torch.hypot(x, y)
    x, y = torch.where(length > 0, x / length, 1.0), torch.where(length > 0, y / length, 0.0)
    top = x * v + y * u
    rest = (x * w + y * z - value * top).norm(dim=1) / value[:, 0].clamp(min=torch.finfo(torch.float32).tiny)
    return unit_rows(top), value[:, 0].clamp(min=0).sqrt(), rest


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows divided by their norms; a row of zeros stays as it is."""
    norm = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1.0)
