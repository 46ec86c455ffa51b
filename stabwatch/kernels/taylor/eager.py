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
    A class whose logit is -inf has no part in the partition function, and none here.
    """
    a, z = (x.detach().float().flatten(0, -2) for x in (rates, logits))
    out = z == -torch.inf
    spread = (a.masked_fill(out, -torch.inf).amax(dim=-1) - a.masked_fill(out, torch.inf).amin(dim=-1)).clamp(min=0)
    if a.shape[-1] == 2:
        return spread / ((z[:, 1] - z[:, 0]).square() + math.pi**2).sqrt()
    return spread / math.pi


def radii(found: Tensor) -> Tensor:
    """float32 (35,): rows, how many of their ratios (N,) reach each of `EDGES`, and the largest; NaN is above all."""
    edges = device_constant(EDGES, torch.float32, found.device)
    found = torch.where(torch.isnan(found), torch.inf, found)
    above = (found[:, None] >= edges).sum(dim=0, dtype=torch.float32)
    return torch.cat((torch.full((1,), float(found.numel()), device=found.device), above, found.amax(0, keepdim=True)))


def taylor(found: Tensor, length: Tensor) -> Tensor:
    """float32 (5,): rows, sum of their ratios (N,), rows at 1 or more, the largest, the step's length (0-dim)."""
    count = torch.full((), float(found.numel()), device=found.device)
    beyond = (found >= 1).sum(dtype=torch.float32)
    return torch.stack((count, found.sum(), beyond, found.amax(), length.to(found.device, torch.float32)))
