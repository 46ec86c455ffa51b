"""A checksum of the bits of a tensor: equal numbers have equal ones, and a bit that turns over changes it.

The bits are added up as whole numbers, which gives the same in any order. The sum wraps round, and its remainder by a
prime is kept, which float32 holds. A bit changes the sum by a power of two, perhaps less the number by which it wraps:
neither is a multiple of the prime.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabwatch.kernels.constants import device_constant

PRIME = (1 << 24) - 3
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(tensors: Sequence[Tensor], group: Sequence[int], groups: int) -> Tensor:
    """int64 (groups,): the sum of the checksums of the tensors of each group, less than PRIME.

    tensors: of one device, with at least one element, in one piece of memory.
    """
    sums = torch.stack([_bits(x).remainder(PRIME) for x in tensors])
    index = device_constant(tuple(group), torch.int64, sums.device)
    return torch.zeros(groups, dtype=torch.int64, device=sums.device).index_add_(0, index, sums).remainder_(PRIME)


def _bits(x: Tensor) -> Tensor:
    """int64 (): the sum of the words of a tensor, which are as long as its shape and type allow."""
    size = x.element_size()
    flat = x.contiguous().view(-1).view(_WORDS[size])
    if size < 8 and x.numel() * size % 8 == 0:
        wide = flat if flat.storage_offset() * size % 8 == 0 else flat.clone()
        return wide.view(torch.int64).sum()
    return flat.sum(dtype=flat.dtype).to(torch.int64)
