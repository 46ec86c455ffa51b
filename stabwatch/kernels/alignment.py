"""How much a matrix stretches its inputs, against matrices and inputs that have nothing to do with each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alignment(inputs: Tensor, out: Tensor, weight: Tensor) -> Tensor:
    """inputs (n, C), out = inputs weight' (n, D), weight (D, C), C > 1 -> float32 (2,): 1, and the log-alignment ratio.

    The logarithm to base C of RMS(out) / (RMS(weight) RMS(inputs)): 1/2 where they are independent, 1 where every
    input lies along each row. Both are 0 where one of them is zero or not finite.
    """
    sizes = [x.float().square().mean() for x in (out, weight, inputs)]
    found = (sizes[0] / (sizes[1] * sizes[2])).log() / (2 * math.log(weight.shape[1]))
    known = torch.isfinite(found)
    return torch.stack((known.float(), torch.where(known, found, 0.0)))
