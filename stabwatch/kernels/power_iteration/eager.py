"""Block power iteration with a Rayleigh-Ritz step: matrix products and k x k problems, without waiting for the device.

`torch.linalg.eigh` and `qr` wait for error codes of a CUDA device. So the block is made orthonormal by Cholesky
factors (`cholesky_ex`, which does not), and the k x k eigenvectors come from repeated squaring.
"""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 7
"""Squarings of the small matrix, to the power of 128. Of a second eigenvalue within 2 % of the first, 8 % remain; the
result of such a mixture is between the two."""
_SPICE = 1e-6
"""Share of other directions added to the block, which keeps it of full rank when the matrix has low rank."""


def start(matrix: Tensor, k: int) -> Tensor:
    """The initial orthonormal block (..., C, min(k, R, C)); the same for all matrices (..., R, C) of one shape."""
    *batch, rows, columns = matrix.shape
    block = _orthonormal(_directions(columns, min(k, rows, columns), matrix.device)).float()
    return block.expand(*batch, -1, -1)


def iterate(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the first two singular values (one if k is 1), the next basis, relative residual of the first.

    matrix (..., R, C), multiplied in float32 whatever its type, basis (..., C, k) with orthonormal columns; values
    (..., 2), residual (...). Matrices of one shape are iterated together and independently. The values are those of the
    matrix restricted to the block, so neither exceeds the true one. With s the first value, the square of some true
    value is within residual * s^2 of s^2. Non-finite elements give NaN; a zero matrix gives zeros.
    """
    matrix = matrix.detach().float()
    low, high = matrix.amin((-2, -1), keepdim=True), matrix.amax((-2, -1), keepdim=True)
    scale = _least(torch.maximum(-low, high))  # without it squares may overflow or vanish
    seen = matrix @ basis / scale
    wide = seen.double()
    squares, vectors = _largest(wide.mT @ wide, min(2, basis.shape[-1]))
    back = matrix.mT @ seen / scale
    first, top = squares[..., :1].float(), vectors[..., :1].float()
    away = torch.linalg.vector_norm(back @ top - first[..., None] * (basis @ top), dim=(-2, -1))
    residual = away / torch.where(first > 0, first, 1.0)[..., 0]
    following = _orthonormal(back.double()).float()
    kept = torch.where(torch.isfinite(following).all(dim=(-2, -1), keepdim=True), following, basis)
    return squares.clamp(min=0.0).sqrt().float() * scale[..., 0], kept, residual


def _largest(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues (..., k) of non-negative matrices (..., n, n), and their eigenvectors (..., n, k)."""
    values, vectors = [], []
    for _ in range(k):
        power = gram
        for _ in range(SQUARINGS):
            power = power / _least(torch.linalg.matrix_norm(power, keepdim=True))
            power = power @ power
        # gathered, because indexing with a 0-dim tensor would read it on the host
        best = power.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
        column = power.take_along_dim(best, dim=-1)
        vector = column / _least(torch.linalg.vector_norm(column, dim=-2, keepdim=True))
        value = vector.mT @ gram @ vector
        gram = gram - value * (vector @ vector.mT)
        values.append(value[..., 0])
        vectors.append(vector)
    return torch.cat(values, dim=-1), torch.cat(vectors, dim=-1)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns that span the block (..., C, k) in float64, up to a millionth of other directions."""
    block = block / _least(torch.linalg.vector_norm(block, dim=-2, keepdim=True))
    block = block + _SPICE * _directions(block.shape[-2], block.shape[-1], block.device)
    for _ in range(2):  # the second round removes what rounding left of the first
        factor = torch.linalg.cholesky_ex(block.mT @ block, upper=True).L
        block = torch.linalg.solve_triangular(factor, block, upper=True, left=False)
    return block


def _directions(n: int, k: int, device: torch.device) -> Tensor:
    """Pseudo-random columns (n, k) of unit length, without a generator: cosines of multiples of roots of primes."""
    phase = torch.arange(1, n + 1, device=device, dtype=torch.float64)[:, None]
    roots = torch.arange(2, k + 2, device=device, dtype=torch.float64).mul(2).sub(1).sqrt()
    return torch.cos(phase.square() * roots) * (2.0 / n) ** 0.5


def _least(x: Tensor) -> Tensor:
    """x, or the smallest positive number where x is zero; a safe divisor."""
    return x.clamp(min=torch.finfo(x.dtype).tiny)
