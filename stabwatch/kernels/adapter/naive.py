"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def adapter(a: Tensor, b: Tensor, old_a: Tensor, old_b: Tensor, scaling: float) -> Tensor:
    """float64 (3,): squared norms of s B A and of its change, largest singular value of s B A."""
    new, old = scaling * (b.double() @ a.double()), scaling * (old_b.double() @ old_a.double())
    return torch.stack((new.square().sum(), (new - old).square().sum(), torch.linalg.svdvals(new)[0]))
