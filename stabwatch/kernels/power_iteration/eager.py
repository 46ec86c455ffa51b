"""Block power iteration with a Rayleigh-Ritz step: matrix products and k x k problems, none of which waits.

`torch.linalg.eigh` and `qr` ask a CUDA device for their error codes; so the block is made orthonormal by Cholesky
factors (`cholesky_ex`, which does not), and the k x k eigenvectors come from repeated squaring.
"""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 7
"""The small matrix to the power of 128: what is left of a second eigenvalue within 2 % of the first is 8 %, and the
value that a mixture of the two gives lies between them."""
_SPICE = 1e-6
"""Of other directions mixed into the block, so that a matrix of low rank leaves it of full rank."""


def start(matrix: Tensor, k: int) -> Tensor:
    """An orthonormal block (C, min(k, R, C)) to begin with; the same for every matrix of one shape."""
    k = min(k, *matrix.shape)
    return _orthonormal(_directions(matrix.shape[1], k, matrix.device)).float()


def iterate(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the first two singular values (one if k is 1), the next basis (C, k), relative residual of the first.

    matrix (R, C) float32, basis (C, k) with orthonormal columns. The values are those of the matrix restricted to
    the block, so neither is larger than the true one; a true value squared lies within residual times the first
    squared of the first squared. Elements that are not finite give NaN, a zero matrix zeros.
    """
    low, high = torch.aminmax(matrix)
    scale = _least(torch.maximum(low.abs(), high.abs()))  # without it squares may overflow or vanish
    seen = matrix @ basis / scale
    wide = seen.double()
    squares, vectors = _largest(wide.mT @ wide, min(2, basis.shape[1]))
    back = matrix.mT @ seen / scale
    top = vectors[:, 0].float()
    away = torch.linalg.vector_norm(back @ top - squares[0].float() * (basis @ top))
    residual = away / torch.where(squares[0] > 0, squares[0], 1.0).float()
    following = _orthonormal(back.double()).float()
    kept = torch.where(torch.isfinite(following).all(), following, basis)
    return squares.clamp(min=0.0).sqrt().float() * scale, kept, residual


def _largest(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a symmetric non-negative matrix (n, n), and their eigenvectors (n, k)."""
    values, vectors = [], []
    for _ in range(k):
        power = gram
        for _ in range(SQUARINGS):
            power = power / _least(torch.linalg.matrix_norm(power))
            power = power @ power
        column = power[:, power.diagonal().argmax()]
        vector = column / _least(torch.linalg.vector_norm(column))
        value = vector @ gram @ vector
        gram = gram - value * torch.outer(vector, vector)
        values.append(value)
        vectors.append(vector)
    return torch.stack(values), torch.stack(vectors, dim=1)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns that span the block (C, k) in float64, up to a millionth of other directions."""
    block = block / _least(torch.linalg.vector_norm(block, dim=0))
    block = block + _SPICE * _directions(block.shape[0], block.shape[1], block.device)
    for _ in range(2):  # the second round removes what rounding left of the first
        factor = torch.linalg.cholesky_ex(block.mT @ block, upper=True).L
        block = torch.linalg.solve_triangular(factor, block, upper=True, left=False)
    return block


def _directions(n: int, k: int, device: torch.device) -> Tensor:
    """(n, k) of unit length, as good as random, from no generator: cosines of multiples of square roots of primes."""
    phase = torch.arange(1, n + 1, device=device, dtype=torch.float64)[:, None]
    roots = torch.arange(2, k + 2, device=device, dtype=torch.float64).mul(2).sub(1).sqrt()
    return torch.cos(phase.square() * roots) * (2.0 / n) ** 0.5


def _least(x: Tensor) -> Tensor:
    """x, or 1 where it is zero: to divide by."""
    return torch.where(x > 0, x, 1.0)
