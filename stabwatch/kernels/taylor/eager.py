"""Plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabwatch.kernels.constants import device_constant
from stabwatch.signals.reductions import EDGES


def ratios(rates: Tensor, logits: Tensor) -> Tensor:
    """Step length over Taylor radius of each row: float32 (N,), from two (..., K) tensors.

    rates: change of the linearised logits over the whole step. r < 1: the step stays inside the radius. More than two
    classes: the lower bound of the radius, pi over the spread of the rates (Ghosts of Softmax, arXiv:2603.13552).
    A class whose logit is -inf is not in the partition function and is left out.
    """
    a, z = (x.detach().float().flatten(0, -2) for x in (rates, logits))
    out = z == -torch.inf
    spread = (a.masked_fill(out, -torch.inf).amax(dim=-1) - a.masked_fill(out, torch.inf).amin(dim=-1)).clamp(min=0)
    if a.shape[-1] == 2:
        return spread / ((z[:, 1] - z[:, 0]).square() + math.pi**2).sqrt()
    return spread / math.pi


def radii(row_ratios: Tensor) -> Tensor:
    """float32 (35,): rows, number of ratios (N,) that reach each of `EDGES`, largest ratio; NaN counts as largest."""
    edges = device_constant(EDGES, torch.float32, row_ratios.device)
    row_ratios = torch.where(torch.isnan(row_ratios), torch.inf, row_ratios)
    above = (row_ratios[:, None] >= edges).sum(dim=0, dtype=torch.float32)
    return torch.cat(
        (torch.full((1,), float(row_ratios.numel()), device=row_ratios.device), above, row_ratios.amax(0, keepdim=True))
    )


def taylor(row_ratios: Tensor, length: Tensor) -> Tensor:
    """float32 (5,): rows, sum of the ratios (N,), rows at 1 or more, largest ratio, length of the step (0-dim)."""
    count = torch.full((), float(row_ratios.numel()), device=row_ratios.device)
    beyond = (row_ratios >= 1).sum(dtype=torch.float32)
    return torch.stack(
        (count, row_ratios.sum(), beyond, row_ratios.amax(), length.to(row_ratios.device, torch.float32))
    )
