"""Plain torch: no matrix of the size of the layer is made."""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 12
"""The largest singular value is too large by a factor of r ** 2 ** -13 at most: 1.0006 at rank 128."""


def adapter(a: Tensor, b: Tensor, old_a: Tensor, old_b: Tensor, scaling: float) -> Tensor:
    """a (r, in), b (out, r) after a step, old_a and old_b before it -> float32 (3,).

    Squared Frobenius norm of s B A, that of the change of s B A, largest singular value of s B A.
    """
    a, b, old_a, old_b = (x.detach().float() for x in (a, b, old_a, old_b))
    rows, columns = a @ a.mT, b.mT @ b
    left, right = torch.cat((b - old_b, old_b), dim=1), torch.cat((a, a - old_a))  # B'A' - BA = dB A' + B dA
    change = ((left.mT @ left) * (right @ right.mT)).sum()
    sums = torch.stack(((rows * columns).sum(), change)).clamp(min=0.0) * scaling**2
    return torch.cat((sums, abs(scaling) * _largest(columns @ rows).sqrt()[None]))


def _largest(product: Tensor) -> Tensor:
    """The largest eigenvalue, float32 (), of a product of two positive semidefinite matrices, by repeated squaring.

    Of what is squared the trace is 1; the logarithms of the traces add up. Nothing here waits for the device.
    """
    log = torch.zeros((), device=product.device)
    first = trace = product.diagonal().sum()
    for i in range(SQUARINGS + 1):
        kept = trace.clamp(min=torch.finfo(torch.float32).tiny)
        log = log + kept.log() / 2**i
        product = product / kept
        product = product @ product
        trace = product.diagonal().sum()
    return torch.where(first > 0, log.exp(), 0.0)
